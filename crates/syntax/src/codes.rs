//! The codes of everything that can be wrong with a text's shape: CD01xx. A number is never used again for something else.

use crate::diagnostic::{CodeInfo, Severity};

macro_rules! codes {
    ($($name:ident $code:literal $title:literal { bad: $bad:expr, good: $good:expr, $explanation:literal })*) => {
        $(pub(crate) static $name: &CodeInfo = &CodeInfo {
            code: $code,
            title: $title,
            severity: Severity::Error,
            explanation: $explanation,
            bad: $bad,
            good: $good,
        };)*
        static ALL: &[&CodeInfo] = &[$($name),*];
    };
}

/// Every code that [`crate::parse`], [`crate::decode`] and [`crate::format`] can report, in order of number.
///
/// The examples of three of them are empty, because no short text shows them: bytes that are not UTF-8, a text of 64 MiB, and
/// more than a hundred mistakes.
pub fn codes() -> &'static [&'static CodeInfo] {
    ALL
}

codes! {
    UNEXPECTED "CD0101" "something stands where nothing fits" {
        bad: "stage build {\n  run @deploy\n}\n",
        good: "stage build {\n  run \"@deploy\"\n}\n",
        "A file is a list of entries, and an entry is either a setting (`name = value`) or a statement: a keyword, what belongs to it, and
perhaps a body in braces. Something was found that is neither and cannot continue what stands before it.

Nothing is guessed: a word or sign that was skipped could have been a condition or a limit. The rest of the file was read, so
other messages are to be trusted.

Text needs quotes as soon as it is more than one plain word: `\"ghcr.io/acme/web:1.0\"`, `\"@deploy\"`. A value alone on a line
does nothing; put the keyword before it."
    }
    MISSING_VALUE "CD0102" "a value is missing" {
        bad: "stage build {\n  timeout =\n  retry = 2\n}\n",
        good: "stage build {\n  timeout = 5m\n  retry   = 2\n}\n",
        "After `=`, after an operator and between commas stands a value: a number (`2`), a number with a unit (`5m`, `10%`, `256Mi`), a string, a
name, a list `[a, b]`, a map `{ key = value }`, or an expression made of these.

There is no empty value. To get the default of a setting, leave the whole setting out."
    }
    UNCLOSED_BRACKET "CD0103" "a bracket is never closed" {
        bad: "stage build {\n  run \"make\" {\n    timeout = 5m\n\n  lock = \"build\"\n}\n",
        good: "stage build {\n  run \"make\" {\n    timeout = 5m\n  }\n  lock = \"build\"\n}\n",
        "Each `{`, `[` and `(` needs its partner. Without it everything up to the end of the file would belong to what was opened.

Where the partner is missing is told from the indentation: a body ends before the first line that is level with the line on
which it was opened. The message points to the end of the last line that still belongs to it, and to the bracket that is open.
The rest of the file is read as if the partner stood there."
    }
    STRAY_BRACKET "CD0104" "a bracket closes nothing" {
        bad: "stage build\n  run \"make\"\n}\n",
        good: "stage build {\n  run \"make\"\n}\n",
        "A `}`, `]` or `)` was found with nothing open that it could close. Either it is one too many, or its partner is missing further up; the
indentation of the line tells which, and then the message points to where the opening bracket belongs."
    }
    UNCLOSED_STRING "CD0105" "a string is not closed" {
        bad: "stage build {\n  run \"make all\n}\n",
        good: "stage build {\n  run \"make all\"\n}\n",
        "A string between `\"` or `'` ends on the line on which it begins. Without the closing mark the rest of the line would be text, brackets
and comments included; so other complaints about this statement are held back until the string is closed.

Text of several lines is written as a block. It opens as the last thing on a line and closes as the first thing on another:

```cd
run \"\"\"
  npm ci
  npm test
\"\"\"
```"
    }
    BAD_LITERAL "CD0106" "not a number, or not a unit" {
        bad: "stage build {\n  timeout = 10min\n}\n",
        good: "stage build {\n  timeout = 10m\n}\n",
        "What begins with a digit is a number, and takes every letter, digit, point and percent sign that follows. The whole must be one of:

| written | is |
|---|---|
| `42`, `0.5` | a number |
| `10%`, `0.5%` | a share |
| `500ms`, `30s`, `5m`, `2h`, `1d`, `1h30m` | a duration: largest unit first, each once |
| `512B`, `64kB`, `10MB`, `1GB` | a size in thousands |
| `64Ki`, `256Mi`, `1.5Gi` | a size in steps of 1024 |

The case counts: `5m` is five minutes and `5M` is nothing. A unit is part of the value, so that no one has to remember
whether a timeout is in seconds or in milliseconds. A version (`1.4.2`), an address or a file mode is text and needs quotes."
    }
    BAD_ESCAPE "CD0107" "an escape that does not exist" {
        bad: "stage build {\n  run \"grep \\d+ log\"\n}\n",
        good: "stage build {\n  run 'grep \\d+ log'\n}\n",
        "Between `\"` a backslash begins an escape: `\\\"`, `\\\\`, `\\n`, `\\t`, `\\r`, `\\u{2713}`. Others mean nothing, and leaving the backslash in silently would
make the text depend on who reads it.

For a regular expression or a Windows path use `'…'`: nothing in it is special. In blocks of text a backslash is literal, too."
    }
    BAD_INTERPOLATION "CD0108" "`${…}` does not hold an expression" {
        bad: "stage build {\n  run \"echo ${HOME:-/root}\"\n}\n",
        good: "stage build {\n  run \"echo $${HOME:-/root}\"\n}\n",
        "In a double-quoted string and in a `\"\"\"` block, cdpipe fills in `${expression}`. What stands between the braces has to be an expression
of cdpipe, such as `${version}` or `${web.image}`.

The shell has the same notation for its own variables. To leave one to the shell write `$NAME`, or `$${…}` where the shell
needs the braces: `$${` is a literal `${`."
    }
    FOREIGN_OPERATOR "CD0109" "an operator of another language" {
        bad: "stage live {\n  when = a == 1 && b == 2\n}\n",
        good: "stage live {\n  when = a == 1 and b == 2\n}\n",
        "The operators are `or`, `and`, `not`, `== != < <= > >=`, `matches`, `in`, `+ - * /`. A choice is `if condition then value else value`.

| elsewhere | here |
|---|---|
| `a && b`, `a \\|\\| b`, `!a` | `a and b`, `a or b`, `not a` |
| `a === b`, `a <> b` | `a == b`, `a != b` |
| `a =~ '^v'` | `a matches '^v'` |
| `c ? a : b` | `if c then a else b` |
| `1..3` | `[1, 2, 3]` |"
    }
    EQUALS "CD0110" "`=` and `==` mixed up" {
        bad: "stage live {\n  when = (branch = \"main\")\n}\n",
        good: "stage live {\n  when = (branch == \"main\")\n}\n",
        "`=` sets, `==` asks. In `when = branch == \"main\"` the first sets the setting `when`, the second compares.

If the one were taken for the other, a condition would silently be something else than was meant; so neither is."
    }
    CHAINED "CD0111" "comparisons in a row" {
        bad: "stage live {\n  when = 1 < replicas < 5\n}\n",
        good: "stage live {\n  when = 1 < replicas and replicas < 5\n}\n",
        "`1 < replicas < 5` means one thing in mathematics, another in C and a third in Python. Here it means nothing: compare twice and join the
comparisons by `and`."
    }
    MISSING_COMMA "CD0112" "a comma is missing" {
        bad: "stage live {\n  needs = [\n    build\n    test\n  ]\n}\n",
        good: "stage live {\n  needs = [\n    build,\n    test,\n  ]\n}\n",
        "The elements of a list and the arguments of a call are separated by commas, also when each stands on a line of its own. A comma after the
last one is fine."
    }
    LIST_WITHOUT_BRACKETS "CD0113" "a list without brackets" {
        bad: "stage live {\n  needs = build, test\n}\n",
        good: "stage live {\n  needs = [build, test]\n}\n",
        "A comma ends an entry, just as a new line does: `{ a = 1, b = 2 }`. So in `needs = build, test` the setting is `needs = build`, and `test` stands
alone. A list has brackets, even a list of one."
    }
    RESERVED_NAME "CD0114" "a reserved word as a name" {
        bad: "stage build {\n  in = \"src\"\n}\n",
        good: "stage build {\n  input = \"src\"\n}\n",
        "`and or not in matches if then else true false` belong to expressions and cannot be names of anything: an expression in which they occurred could
be read in two ways.

There is no `if` around steps either. Whether a stage or a gate happens is its setting `when`; a value that depends on
something is `if condition then value else value`."
    }
    BAD_NAME "CD0115" "not a name" {
        bad: "stage build- {\n  run \"make\"\n}\n",
        good: "stage build {\n  run \"make\"\n}\n",
        "A name begins with a letter from A to Z or a to z or with `_`, goes on with those, digits and `-`, and does not end in `-`.

Names travel: they become labels on containers, names of units, keys in metrics. Other letters are not allowed everywhere
there. Text that people read (descriptions, messages) is a string and may hold anything."
    }
    TIGHT_MINUS "CD0116" "a minus without blanks" {
        bad: "service web {\n  replicas = (wanted)-1\n}\n",
        good: "service web {\n  replicas = (wanted) - 1\n}\n",
        "Names may hold dashes, so `replicas-1` is one name. A minus between two values has blanks on both sides, and a minus that negates touches
its value: `a - b`, `-5`."
    }
    FOREIGN_COMMENT "CD0117" "a comment of another language" {
        bad: "// builds everything\nstage build {}\n",
        good: "# builds everything\nstage build {}\n",
        "A comment begins with `#` and ends with its line. There are no comments that end before the line does: what follows one could be missed."
    }
    FOREIGN_QUOTES "CD0118" "quotation marks of another kind" {
        bad: "stage build {\n  run “make”\n}\n",
        good: "stage build {\n  run \"make\"\n}\n",
        "Strings stand between `\"` or between `'`. Word processors, chats and web pages turn these into curved ones, and some languages have backticks;
neither means anything here."
    }
    COLON "CD0119" "`:` instead of `=`" {
        bad: "stage build {\n  timeout: 5m\n}\n",
        good: "stage build {\n  timeout = 5m\n}\n",
        "Settings are written with `=`. A `:` stands only before a type, as in `param replicas: int = 6`.

| YAML, JSON | here |
|---|---|
| `timeout: 5m` | `timeout = 5m` |
| `env:` and lines further right | `env { … }` |
| `needs: [a, b]`, or `needs:` and lines with `-` | `needs = [a, b]` |"
    }
    BRACE_ON_NEXT_LINE "CD0120" "a `{` on a line of its own" {
        bad: "stage build\n{\n  run \"make\"\n}\n",
        good: "stage build {\n  run \"make\"\n}\n",
        "A new line ends a statement. So a body opens on the line of its keyword; on the next line it would belong to nothing."
    }
    TOO_DEEP "CD0121" "nested too deep" {
        bad: "x = [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]\n",
        good: "x = [1]\n",
        "Brackets, `${…}` and `if` nest 64 levels deep at most, and one expression has at most 1000 operators in a row. No pipeline that people read comes near;
the limits are there so that a broken or hostile file gets an answer at once, instead of using up memory.

Long lists and maps are not limited. What nests too deep can be taken apart: a named `strategy` or `watch`, a parameter, a
file that is brought in with `use`."
    }
    TOO_LARGE "CD0122" "too large to be a pipeline" {
        bad: "",
        good: "",
        "A file of more than 64 MiB is not read, nor is one in which no statement such as `stage` begins for 4 MiB. It is most likely not the file that was
meant."
    }
    NOT_UTF8 "CD0123" "not UTF-8" {
        bad: "",
        good: "",
        "A pipeline is text in UTF-8 (ASCII is a part of that). The message names the line and column of the first byte that is not.

An editor that shows the text well may have it in another encoding: save it as UTF-8, without or with a byte order mark."
    }
    BLOCK_STRING "CD0124" "a block of text on one line" {
        bad: "stage build {\n  run \"\"\"make\"\"\"\n}\n",
        good: "stage build {\n  run \"make\"\n}\n",
        "Three quotes open a block as the last thing on their line and close it as the first thing on theirs. What lies between is taken as it is, without the
indentation that all its lines share and without the last line break.

Text on the line of the opening quotes would have no indentation to compare, so it is not allowed. Text on one line stands
between single marks."
    }
    MORE "CD0125" "more mistakes than are shown" {
        bad: "",
        good: "",
        "A hundred mistakes of one file are shown. Mending the first ones often mends others as well; then check again."
    }
    BODY_OF_SETTING "CD0126" "a setting with a body" {
        bad: "stage live {\n  strategy = canary {\n    step 10% for 5m\n  }\n}\n",
        good: "stage live {\n  strategy canary {\n    step 10% for 5m\n  }\n}\n",
        "With `=` it is a setting, and a setting has a value: `env = { A = \"1\" }` sets `env` to a map. Without `=` it is a statement, and a statement may have
a body: `env { A = \"1\" }`. A word with a body behind it is no value."
    }
    CONFLICT_MARKER "CD0127" "a conflict marker" {
        bad: "<<<<<<< HEAD\nparam replicas: int = 2\n",
        good: "param replicas: int = 2\n",
        "A version control system has left the two sides of a merge in the file, between lines of `<<<<<<<`, `=======` and `>>>>>>>`. Decide which is right."
    }
    MAP_ENTRY "CD0128" "something else than `key = value` in a map" {
        bad: "service web {\n  env = { PORT \"80\" }\n}\n",
        good: "service web {\n  env = { PORT = \"80\" }\n}\n",
        "Where a value stands, `{` opens a map: keys and values, joined by `=`, separated by commas or new lines. A key that is not a plain name is put in
quotes: `{ \"Content-Type\" = \"text/plain\" }`. Statements stand only in bodies."
    }
    SEPARATOR "CD0129" "two entries run into one another" {
        bad: "stage build {\n  timeout = 5m retry = 2\n}\n",
        good: "stage build {\n  timeout = 5m, retry = 2\n}\n",
        "A setting ends with its line, or with a `;` or `,` on it. Something else follows here on the same line: either a second entry, or text that should have
been in quotes."
    }
    IF_PARTS "CD0130" "a choice that is not complete" {
        bad: "stage build {\n  timeout = if slow then 2h\n}\n",
        good: "stage build {\n  timeout = if slow then 2h else 30m\n}\n",
        "A choice has a condition and two values: `if condition then value else value`. It is a value, so there is one in either case; nothing is left undecided.

To leave a stage or gate out, use `when = condition`."
    }
}
