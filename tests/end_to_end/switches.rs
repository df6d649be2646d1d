//! Fifty switches and rollbacks under an open load: not one failed or cut request, and none from a release that was
//! not allowed to serve at that moment.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

use cdpipe_tests::deployed::Deployed;
use cdpipe_tests::load::{Kind, Load, Mix, Named, Timeline};
use cdpipe_tests::moments::allow_routes;
use std::time::Duration;

const SWITCHES: u32 = 50;

#[test]
fn fifty_switches_and_rollbacks_drop_nothing() {
    let shop = Deployed::with(include_str!("../pipelines/switches.cd")).unwrap();
    let first = shop.deploy("v0", "").unwrap();
    assert_eq!(first.code, Some(0), "{first:?}");
    let mut stable = shop.ask().unwrap();
    assert_eq!((stable.status, stable.version.as_str()), (200, "v0"));

    let mix = Mix::new([
        (Kind::Short, 40),
        (Kind::Fresh, 15),
        (Kind::Slow { ms: 400 }, 15),
        (Kind::Echo { bytes: 20_000 }, 15),
        (Kind::Stream { events: 20, every_ms: 50 }, 10),
        (Kind::Socket { messages: 20, every_ms: 60, bytes: 200 }, 5),
    ]);
    let load = Load {
        rate_per_s: 60,
        length: Duration::from_secs(900),
        mix: mix.unwrap(),
        ..Load::on(shop.address)
    };
    let load = load.start().unwrap();
    let clock = load.clock();
    let mut versions = Timeline::new();
    versions.allow_from(Duration::ZERO, [stable.version.as_str()]);

    for n in 1..=SWITCHES {
        let version = format!("v{n}");
        // Every fifth release is a bad one, in a way that no user is failed by: too slow, or never there.
        let fault = match n % 10 {
            4 => "latency=800ms",
            9 => "never-healthy",
            _ => "",
        };
        let ended = shop.deploy_with(&version, fault, &["--json"]).unwrap();
        let expected = if fault.is_empty() { 0 } else { 3 };
        assert_eq!(ended.code, Some(expected), "{version} {fault}: {ended:?}");
        allow_routes(&ended.stdout, clock, &mut versions).unwrap();
        if fault.is_empty() {
            stable.version = version;
        }
        let answer = shop.ask().unwrap();
        assert_eq!((answer.status, &answer.version), (200, &stable.version));
    }
    let report = load.stop().unwrap();
    assert!(report.failures().is_empty(), "{report}");
    let wrong = report.not_allowed(&versions, Named::ByVersion);
    assert!(
        wrong.is_empty(),
        "{} answers of versions that were not allowed, such as {}\n{report}",
        wrong.len(),
        wrong[0]
    );
    println!("{report}");
}
