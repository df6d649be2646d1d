//! What the formatter promises: the tree and the comments stay, and formatting twice is formatting once.

use cdpipe_syntax::testing::dump;
use cdpipe_syntax::{SourceId, format, parse};
use proptest::prelude::*;

mod corpus;

/// The comments of a text, in order.
fn comments(text: &str) -> Vec<String> {
    parse(SourceId(0), text)
        .file
        .comments
        .iter()
        .map(|span| text[span.range()].trim_end().to_owned())
        .collect()
}

/// Checks all promises for one text that parses.
#[allow(clippy::panic, reason = "a check of tests")]
fn check(name: &str, text: &str) -> String {
    let once = format(text).unwrap_or_else(|errors| panic!("{name} does not parse: {errors:?}"));
    let tree = dump(&parse(SourceId(0), text).file);
    let again = parse(SourceId(0), &once);
    assert_eq!(again.diagnostics, [], "{name}: the formatted text has errors:\n{once}");
    assert_eq!(dump(&again.file), tree, "{name}: the meaning changed:\n{once}");
    assert_eq!(comments(&once), comments(text), "{name}: comments changed:\n{once}");
    let twice = format(&once).unwrap_or_else(|errors| panic!("{name}: {errors:?}"));
    assert_eq!(twice, once, "{name}: formatting twice is not formatting once");
    once
}

#[test]
fn the_corpus_keeps_its_meaning_and_comments() {
    for (name, text) in corpus::files() {
        check(&name, &text);
    }
}

#[test]
fn what_it_looks_like() {
    let text = "\
# one
pipeline   p{mode=delivery;max_parallel=2}   # two


param x:int   in[1,2]=1
service web {


  image=\"a\"
  replicas   =  2 # three
  # four
  env={A=\"1\",'B c'=2}
  list = [ 1,2 ,
    3 ]
  when = a
     and not (b) or -c==1
  run \"\"\"
      x
        ${y}
    \"\"\" { timeout=5m }

}
";
    let pretty = "\
# one
pipeline p { mode = delivery, max_parallel = 2 }  # two

param x: int in [1, 2] = 1
service web {
  image    = \"a\"
  replicas = 2  # three
  # four
  env = { A = \"1\", 'B c' = 2 }
  list = [
    1,
    2,
    3,
  ]
  when = a
    and not (b) or -c == 1
  run \"\"\"
    x
      ${y}
  \"\"\" { timeout = 5m }
}
";
    assert_eq!(check("sample", text), pretty);
}

#[test]
fn what_does_not_fit_on_a_line_is_opened_from_the_outside() {
    let item = "\"a-rather-long-name-of-a-host.example.com\"";
    let text = format!("x = {{ a = [{item}, {item}], b = 1, c = \"and some more\" }}\n");
    let pretty = format!("x = {{\n  a = [{item}, {item}]\n  b = 1\n  c = \"and some more\"\n}}\n");
    assert_eq!(check("long", &text), pretty);
    let text = format!("notify f([{item}, {item}, {item}])\n");
    let pretty = format!("notify f([\n  {item},\n  {item},\n  {item},\n])\n");
    assert_eq!(check("longer", &text), pretty);
}

#[test]
fn text_that_cannot_be_read_is_not_touched() {
    let errors = format("stage a {\n  timeout = 5min\n}\n").expect_err("a mistake");
    assert_eq!(errors[0].code(), "CD0106");
    assert_eq!(format(""), Ok(String::new()));
    assert_eq!(format("\n\n# only this\n\n"), Ok("# only this\n".to_owned()));
}

// ---- texts made at random, with blanks, line breaks and comments wherever they may stand

/// Blanks within a line.
fn blank() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => Just(" "), 1 => Just("   "), 1 => Just("\t")]
}

/// Where a line may end.
fn wide() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        6 => Just(" "),
        1 => Just("\n"),
        1 => Just("  # why\n    "),
        1 => Just("\n\n  # alone\n"),
        1 => Just(" # one\n # two\n\n\n  "),
    ]
}

fn name() -> impl Strategy<Value = String> {
    proptest::sample::select(vec!["a", "b-c", "_x1", "notes", "iffy", "a_name_of_some_length"])
        .prop_map(str::to_owned)
}

fn leaf() -> impl Strategy<Value = String> {
    let plain = vec![
        "1",
        "-2",
        "0.5",
        "10%",
        "1h30m",
        "256Mi",
        "true",
        "'raw $x \\'",
        "\"text\"",
        "\"\"",
        "\"v${a}-${b.c + 1}$${d} \\n\"",
        "\"\"\"\n      one\n\n        two ${x}\n    \"\"\"",
        "'''\n\traw\n'''",
        "web.image",
        "xs[0].y",
        "\"a string that is so long that not many of its kind fit on a line\"",
    ];
    prop_oneof![3 => proptest::sample::select(plain).prop_map(str::to_owned), 2 => name()]
}

fn sequence(
    open: &'static str,
    close: &'static str,
    item: BoxedStrategy<String>,
) -> impl Strategy<Value = String> {
    (proptest::collection::vec((wide(), item, wide()), 0..4), wide(), any::<bool>()).prop_map(
        move |(items, end, trailing)| {
            let items: Vec<String> =
                items.into_iter().map(|(before, item, after)| format!("{before}{item}{after}")).collect();
            let comma = if trailing && !items.is_empty() { "," } else { "" };
            format!("{open}{}{comma}{end}{close}", items.join(","))
        },
    )
}

fn expr() -> impl Strategy<Value = String> {
    leaf().prop_recursive(4, 24, 4, |inner| {
        let inner = inner.boxed();
        let op = proptest::sample::select(vec!["+", "-", "*", "/", "==", "<", "and", "or", "in", "matches"]);
        let argument =
            (name(), wide(), inner.clone()).prop_map(|(key, blank, value)| format!("{key} ={blank}{value}"));
        prop_oneof![
            (inner.clone(), wide(), op, wide(), inner.clone())
                .prop_map(|(left, before, op, after, right)| format!("({left}){before}{op}{after}({right})")),
            sequence("[", "]", inner.clone()),
            (name(), sequence("(", ")", inner.clone())).prop_map(|(name, args)| format!("{name}{args}")),
            (name(), sequence("(", ")", argument.boxed())).prop_map(|(name, args)| format!("{name}{args}")),
            body(setting_of(inner.clone(), false)),
            (wide(), inner.clone(), wide())
                .prop_map(|(before, value, after)| format!("({before}{value}{after})")),
            inner.clone().prop_map(|value| format!("not ({value})")),
            (inner.clone(), wide(), wide(), inner.clone(), wide(), inner.clone()).prop_map(
                |(condition, one, two, then, three, otherwise)| {
                    format!("if {condition}{one}then{two}{then}{three}else {otherwise}")
                }
            ),
        ]
    })
}

fn setting_of(value: BoxedStrategy<String>, typed: bool) -> BoxedStrategy<String> {
    let key = prop_oneof![4 => name(), 1 => Just("a.b.c".to_owned()), 1 => Just("\"any key\"".to_owned())];
    let ty = prop_oneof![4 => Just(""), 1 => Just(": int"), 1 => Just(" : list( map(int) )")];
    (key, ty, blank(), wide(), value)
        .prop_map(move |(key, ty, one, two, value)| {
            let ty = if typed { ty } else { "" };
            format!("{key}{ty}{one}={two}{value}")
        })
        .boxed()
}

/// Braces around entries, on one line or several.
fn body(entry: BoxedStrategy<String>) -> BoxedStrategy<String> {
    let separators = vec!["\n", "; ", ", ", "\n\n\n  ", "  # end\n", "\n # own\n"];
    let separator = proptest::sample::select(separators);
    (blank(), proptest::collection::vec((entry, separator), 0..4), wide())
        .prop_map(|(start, entries, end)| {
            let entries: String = entries.into_iter().map(|(entry, separator)| entry + separator).collect();
            format!("{{{start}{entries}{end}}}")
        })
        .boxed()
}

fn statement_of(inner: BoxedStrategy<String>) -> BoxedStrategy<String> {
    let part = prop_oneof![
        4 => name(),
        2 => leaf().prop_filter("a block would end its line, a minus would subtract", |text| !text.contains(['\n', '-'])),
        1 => sequence("[", "]", leaf().boxed()),
        1 => (name(), sequence("(", ")", leaf().boxed())).prop_map(|(name, args)| format!("{name}{args}")),
        1 => (wide(), wide()).prop_map(|(one, two)| format!("a.b{one}>{two}1")),
        1 => Just("for x in [1, 2]".to_owned()),
    ];
    let parts = proptest::collection::vec((blank(), part), 1..4).prop_map(|parts| {
        parts.into_iter().map(|(blank, part)| format!("{blank}{part}")).collect::<String>()
    });
    let tail = prop_oneof![
        3 => Just(String::new()),
        1 => Just(" q: string matches 'x' = 'y'".to_owned()),
        3 => body(inner).prop_map(|body| format!(" {body}")),
    ];
    (proptest::sample::select(vec!["run", "stage", "when"]), parts, tail)
        .prop_map(|(keyword, parts, tail)| format!("{keyword}{parts}{tail}"))
        .boxed()
}

fn entry() -> BoxedStrategy<String> {
    let flat = prop_oneof![setting_of(expr().boxed(), true), Just("run \"a\"".to_owned())].boxed();
    let nested = prop_oneof![flat.clone(), statement_of(flat.clone())].boxed();
    prop_oneof![flat, statement_of(nested)].boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_keeps_its_meaning_and_comments(entries in proptest::collection::vec((entry(), wide()), 1..6)) {
        let text: String = entries.into_iter().map(|(entry, gap)| format!("{entry}\n{gap}")).collect();
        let parsed = parse(SourceId(0), &text);
        prop_assert_eq!(&parsed.diagnostics, &[], "{}", text);
        check("generated", &text);
    }
}
