//! The pages of the codes are true.

use std::collections::BTreeSet;

use cdpipe_syntax::{MAX_DIAGNOSTICS, MAX_TEXT_BYTES, SourceId, codes, decode, parse, parse_expr};

#[test]
fn each_bad_example_shows_its_code_and_each_good_one_is_clean() {
    for info in codes() {
        if info.bad.is_empty() {
            continue;
        }
        let shown: BTreeSet<&str> =
            parse(SourceId(0), info.bad).diagnostics.iter().map(|found| found.code()).collect();
        assert_eq!(shown, BTreeSet::from([info.code]), "{}\n{}", info.code, info.bad);
        assert_eq!(parse(SourceId(0), info.good).diagnostics, [], "{}\n{}", info.code, info.good);
    }
}

#[test]
fn numbers_are_unique_and_ascend_and_pages_have_text() {
    let numbers: Vec<&str> = codes().iter().map(|info| info.code).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
    for info in codes() {
        assert!(info.code.len() == 6 && info.code.starts_with("CD01"), "{}", info.code);
        assert!(info.explanation.len() > 80 && !info.title.ends_with('.'), "{}", info.code);
    }
}

#[test]
fn bytes_that_are_not_utf8_are_named_by_line_and_column() {
    let error = decode(SourceId(0), b"stage a {}\nstage \xe9t\xe9 {}\n").expect_err("Latin-1");
    assert_eq!(error.code(), "CD0123");
    assert_eq!(error.message, "the byte 0xE9 in line 2, column 7 is not UTF-8");
    assert_eq!(error.primary.span.start, 17);
    assert_eq!(decode(SourceId(0), "stage été {}".as_bytes()), Ok("stage été {}"));
    let utf16: Vec<u8> = [0xff, 0xfe, b's', 0].to_vec();
    assert!(
        decode(SourceId(0), &utf16).expect_err("UTF-16").help.is_some_and(|help| help.contains("UTF-16"))
    );
}

#[test]
fn a_text_over_the_limit_is_not_read() {
    let text = "#".repeat(MAX_TEXT_BYTES + 1);
    let parsed = parse(SourceId(0), &text);
    let shown: Vec<&str> = parsed.diagnostics.iter().map(|found| found.code()).collect();
    assert_eq!(shown, ["CD0122"]);
}

#[test]
fn a_hundred_mistakes_are_shown_and_the_rest_is_counted() {
    let text = "x = 5min\n".repeat(250);
    let parsed = parse(SourceId(0), &text);
    assert_eq!(parsed.diagnostics.len(), MAX_DIAGNOSTICS + 1);
    let last = parsed.diagnostics.last().expect("one");
    assert_eq!((last.code(), last.message.as_str()), ("CD0125", "and 150 more"));
}

#[test]
fn one_expression_is_read_by_itself() {
    let expr = parse_expr(SourceId(3), "a + 5m").expect("an expression");
    assert_eq!((expr.span.source, expr.span.start, expr.span.end), (SourceId(3), 0, 6));
    for (text, code, start) in [
        ("5min", "CD0106", 0),
        ("a = b", "CD0110", 2),
        ("", "CD0102", 0),
        ("1\n x", "CD0101", 0),
        ("[1", "CD0101", 0),
    ] {
        let errors = parse_expr(SourceId(0), text).expect_err(text);
        assert_eq!((errors[0].code(), errors[0].primary.span.start), (code, start), "{text}");
    }
    assert_eq!(parse_expr(SourceId(0), &"[".repeat(1_000)).expect_err("deep")[0].code(), "CD0121");
}
