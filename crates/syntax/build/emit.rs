//! Rust functions for the rules. Each returns whether it matched; where it did not, whoever had another way to go puts the
//! position back. `E` says whether matches are kept: not inside of tokens and of looks ahead.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::charset::CharSet;
use crate::first::{First, first};
use crate::lower::{Form, Kind, Lowered};

/// The text of the module: an enum `Rule` and a method of `Matcher` for each rule.
pub(crate) fn matcher(rules: &[Lowered]) -> String {
    let forms = rules.iter().map(|rule| (rule.name.as_str(), &rule.form)).collect();
    let mut emitter = Emitter { forms, sets: BTreeMap::new(), ways: BTreeMap::new() };
    let mut text = String::from(
        "/// What a match is a match of.\n#[derive(Debug, Clone, Copy, PartialEq, Eq)]\npub(crate) enum Rule {\n    EOI,\n",
    );
    for rule in rules.iter().filter(|rule| rule.kind != Kind::Silent) {
        let _ = writeln!(text, "    r#{},", rule.name);
    }
    text.push_str("}\n\nimpl Matcher<'_> {\n");
    for rule in rules {
        emitter.rule(rule, &mut text);
    }
    text.push_str("}\n");
    for (set, number) in &emitter.sets {
        emit_set(set, *number, &mut text);
    }
    for (ways, number) in &emitter.ways {
        let _ = writeln!(text, "static WAYS_{number}: [u32; 257] = {ways:?};");
    }
    text
}

/// A table with an entry for each byte: 0 no, 1 yes, 2 look at the whole character.
fn emit_set(set: &CharSet, number: usize, text: &mut String) {
    let beyond = set.beyond_ascii();
    let all = set.has_all_beyond_ascii();
    let table: Vec<u8> = (0..256)
        .map(|byte| match byte {
            0..128 => u8::from(set.has(byte)),
            _ if all => 1,
            _ => 2 * u8::from(!beyond.is_empty()),
        })
        .collect();
    let ranges = if all { Vec::new() } else { beyond };
    let _ =
        writeln!(text, "static SET_{number}: CharSet = CharSet {{ table: {table:?}, ranges: &{ranges:?} }};");
}

struct Emitter<'r> {
    forms: BTreeMap<&'r str, &'r Form>,
    /// Sets in use, numbered.
    sets: BTreeMap<CharSet, usize>,
    /// Tables of which of several ways to try at a byte, one bit for each, numbered.
    ways: BTreeMap<Vec<u32>, usize>,
}

impl Emitter<'_> {
    fn rule(&mut self, rule: &Lowered, text: &mut String) {
        let keep = if rule.kind == Kind::Token { "false" } else { "E" };
        let body = self.form(&rule.form, keep);
        let name = &rule.name;
        let mut steps = String::new();
        if rule.kind != Kind::Silent {
            let _ = writeln!(steps, "        let open = if E {{ self.open(Rule::r#{name}) }} else {{ 0 }};");
        }
        let _ = writeln!(steps, "        let matched = {body};");
        if rule.kind != Kind::Silent {
            steps.push_str("        if E && matched {\n            self.close(open);\n        }\n");
        }
        if rule.recursive {
            steps.insert_str(0, "        if !self.descend() {\n            return false;\n        }\n");
            steps.push_str("        self.ascend();\n");
        }
        let _ = writeln!(
            text,
            "    pub(super) fn {name}_<const E: bool>(&mut self) -> bool {{\n{steps}        matched\n    }}\n"
        );
    }

    fn first(&self, form: &Form) -> First {
        // The forms outlive every call; a borrow of the map alone is enough.
        let forms = &self.forms;
        first(form, &|name| forms.get(name).copied())
    }

    fn set(&mut self, set: &CharSet) -> String {
        let next = self.sets.len();
        format!("&SET_{}", self.sets.entry(set.clone()).or_insert(next))
    }

    /// An expression that says which of these forms may match at the next byte, one bit for each.
    fn ways(&mut self, forms: &[&Form]) -> String {
        let firsts: Vec<First> = forms.iter().map(|form| self.first(form)).collect();
        let bits = |byte: Option<usize>| -> u32 {
            firsts.iter().enumerate().map(|(way, first)| u32::from(first.may(byte)) << way).sum()
        };
        let table: Vec<u32> = (0..256).map(Some).chain([None]).map(bits).collect();
        let next = self.ways.len();
        format!("WAYS_{}[self.next_byte()]", self.ways.entry(table).or_insert(next))
    }

    /// An expression that is true if the form matched.
    fn form(&mut self, form: &Form, keep: &str) -> String {
        match form {
            Form::One(set) => format!("self.one({})", self.set(set)),
            Form::Text(text) if text.is_empty() => "true".to_owned(),
            Form::Text(text) => format!("self.text({text:?})"),
            Form::Rule(name) => format!("self.{name}_::<{{ {keep} }}>()"),
            Form::Start => "self.at_start()".to_owned(),
            Form::End => format!("self.end::<{{ {keep} }}>()"),
            Form::Row(forms) => {
                let steps: Vec<String> = forms.iter().map(|form| self.form(form, keep)).collect();
                format!("({})", steps.join(" && "))
            }
            Form::Choice(forms) => self.choice(forms, keep),
            Form::Maybe(inner) => self.maybe(inner, keep),
            Form::Many(inner) => self.many(inner, keep),
            Form::Ahead(inner) => self.ahead(inner),
            Form::NotAhead(inner) => format!("!{}", self.ahead(inner)),
        }
    }

    /// Whether nothing is taken when this does not match.
    fn is_whole(form: &Form) -> bool {
        match form {
            Form::Row(forms) => forms.split_last().is_none_or(|(last, before)| {
                Self::is_whole(last)
                    && before.iter().all(|form| matches!(form, Form::Ahead(_) | Form::NotAhead(_)))
            }),
            Form::Choice(forms) => forms.iter().all(Self::is_whole),
            Form::Rule(_) => false,
            _ => true,
        }
    }

    fn choice(&mut self, forms: &[Form], keep: &str) -> String {
        let ways = self.ways(&forms.iter().collect::<Vec<_>>());
        let mut tries = Vec::new();
        // Whether the position may have to be put back, and whether it has been.
        let mut taken = false;
        let mut put_back = false;
        for (way, form) in forms.iter().enumerate() {
            let back = if taken { "self.back(mark); " } else { "" };
            put_back |= taken;
            let try_it = self.form(form, keep);
            tries.push(format!("(ways & {} != 0 && {{ {back}{try_it} }})", 1u64 << way));
            taken |= !Self::is_whole(form);
        }
        let mark = if put_back { "let mark = self.mark(); " } else { "" };
        format!("{{ let ways = {ways}; {mark}{} }}", tries.join(" || "))
    }

    fn maybe(&mut self, inner: &Form, keep: &str) -> String {
        let (ways, try_it) = (self.ways(&[inner]), self.form(inner, keep));
        if Self::is_whole(inner) {
            return format!("{{ if {ways} != 0 {{ {try_it}; }} true }}");
        }
        format!("{{ if {ways} != 0 {{ let mark = self.mark(); if !{try_it} {{ self.back(mark); }} }} true }}")
    }

    fn many(&mut self, inner: &Form, keep: &str) -> String {
        let (set, rest) = match inner {
            Form::One(set) => return format!("self.run({})", self.set(set)),
            // After all that a set takes, only what else there is can match.
            Form::Choice(forms) => match forms.as_slice() {
                [Form::One(set), rest @ ..] => (Some(set), rest),
                forms => (None, forms),
            },
            other => (None, std::slice::from_ref(other)),
        };
        let run = set.map(|set| format!("self.run({}); ", self.set(set))).unwrap_or_default();
        let rest = match rest {
            [one] => one.clone(),
            several => Form::Choice(several.to_vec()),
        };
        let (ways, try_it) = (self.ways(&[&rest]), self.form(&rest, keep));
        format!(
            "{{ loop {{ {run}if {ways} == 0 {{ break; }} let mark = self.mark(); if !{try_it} {{ self.back(mark); break; }} }} true }}"
        )
    }

    fn ahead(&mut self, inner: &Form) -> String {
        if let Form::One(set) = inner {
            return format!("self.looking_at({})", self.set(set));
        }
        let (ways, try_it) = (self.ways(&[inner]), self.form(inner, "false"));
        format!("({ways} != 0 && {{ let mark = self.mark(); let ahead = {try_it}; self.back(mark); ahead }})")
    }
}
