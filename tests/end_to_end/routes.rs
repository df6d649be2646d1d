//! Who sees a candidate before everybody does, asked of the real proxy while the deploy waits.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

use cdpipe_tests::deployed::{Deployed, ask, comes_true};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

#[test]
fn a_preview_shows_the_candidate_alone_and_a_header_chooses_it_through_every_step() {
    let preview = SocketAddr::from(([127, 0, 0, 1], cdpipe_tests::ports::free().unwrap()));
    let pipeline = include_str!("../pipelines/routes.cd").replace("@PREVIEW@", &preview.to_string());
    let shop = Deployed::with(&pipeline).unwrap();
    let at = |address, headers: &str| {
        let answer = ask(address, headers).unwrap();
        (answer.status, answer.version)
    };
    let v = |version: &str| (200, version.to_owned());

    // The first release has nobody to be compared with: it is verified and routed, without a preview.
    std::fs::write(shop.place.work().join("go-v1"), "").unwrap();
    let first = shop.place.run(["run", "shop.cd", "--set", "version=v1"]).unwrap();
    assert_eq!(first.code, Some(0), "{first:?}");
    assert_eq!(at(shop.address, ""), v("v1"));

    let mut run = shop.place.command(["run", "shop.cd", "--set", "version=v2"]);
    let run = run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let verifies = comes_true(Duration::from_secs(60), || shop.place.work().join("seen-v2").exists());
    let seen = verifies.then(|| (at(preview, ""), at(shop.address, "")));
    std::fs::write(shop.place.work().join("go-v2"), "").unwrap();
    let ended = run.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(0), "{said}");
    assert_eq!(seen, Some((v("v2"), v("v1"))), "{said}");
    assert_eq!(at(shop.address, ""), v("v2"));
    assert_eq!(at(preview, "").0, 503, "the preview is closed after the switch");

    let waits = shop.place.run(["run", "shop.cd", "--set", "version=v3"]).unwrap();
    assert_eq!(waits.code, Some(5), "{waits:?}");
    // One user in a hundred gets v3 by chance, so most of these are v2; who asks for it always gets it.
    let by_chance = (0..40).filter(|_| at(shop.address, "") == v("v3")).count();
    assert!(by_chance < 20, "{by_chance} of 40 got the candidate of 1%");
    for _ in 0..20 {
        assert_eq!(at(shop.address, "x-canary: yes\r\n"), v("v3"));
        assert_eq!(at(shop.address, "X-Canary: no\r\ncookie: x-canary=yes\r\n").0, 200);
    }
    let approved = shop.place.run(["approve"]).unwrap();
    assert_eq!(approved.code, Some(0), "{approved:?}");
    let ended = shop.place.run(["resume"]).unwrap();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(at(shop.address, ""), v("v3"));
}
