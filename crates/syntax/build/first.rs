//! With which bytes a form may begin, so that the next byte of the text decides what is tried at all.

use crate::charset::CharSet;
use crate::lower::Form;

/// What a form may begin with; more than that is no mistake, less would be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct First {
    /// Whether the first character of what it takes may begin with this byte.
    pub(crate) bytes: [bool; 256],
    /// Whether it may match without taking anything.
    pub(crate) empty: bool,
}

const NONE: First = First { bytes: [false; 256], empty: false };

impl First {
    fn of(set: &CharSet) -> Self {
        let beyond = !set.beyond_ascii().is_empty();
        let mut first = NONE;
        for (byte, may) in (0u32..).zip(&mut first.bytes) {
            *may = if byte < 128 { set.has(byte) } else { beyond };
        }
        first
    }

    fn add(&mut self, other: &Self, left: &[bool; 256]) {
        for ((may, also), left) in self.bytes.iter_mut().zip(other.bytes).zip(left) {
            *may |= also && *left;
        }
    }

    /// Whether it may match where the text ends, or where this byte stands.
    pub(crate) fn may(&self, byte: Option<usize>) -> bool {
        self.empty || byte.is_some_and(|byte| self.bytes.get(byte).is_some_and(|may| *may))
    }
}

/// What `form` may begin with. `rule` knows the rules by their names.
pub(crate) fn first<'f>(form: &'f Form, rule: &impl Fn(&str) -> Option<&'f Form>) -> First {
    let everywhere = [true; 256];
    match form {
        Form::One(set) => First::of(set),
        Form::Text(text) => match text.chars().next() {
            Some(letter) => First::of(&CharSet::range(letter, letter)),
            None => First { empty: true, ..NONE },
        },
        Form::Rule(name) => match rule(name) {
            Some(form) => first(form, rule),
            None => First { bytes: everywhere, empty: true },
        },
        Form::Start | Form::End | Form::Ahead(_) | Form::NotAhead(_) => First { empty: true, ..NONE },
        Form::Choice(forms) => {
            let mut all = NONE;
            for form in forms {
                let one = first(form, rule);
                all.add(&one, &everywhere);
                all.empty |= one.empty;
            }
            all
        }
        Form::Maybe(inner) | Form::Many(inner) => First { empty: true, ..first(inner, rule) },
        Form::Row(forms) => row(forms, rule),
    }
}

fn row<'f>(forms: &'f [Form], rule: &impl Fn(&str) -> Option<&'f Form>) -> First {
    let mut all = NONE;
    // What the looks ahead leave of the bytes that may stand here. (One that comes after something was taken looks at a later
    // byte; but what was taken has then been added before.)
    let mut left = [true; 256];
    for form in forms {
        match form {
            Form::Ahead(inner) => {
                let ahead = first(inner, rule);
                for (left, may) in left.iter_mut().zip(ahead.bytes) {
                    *left &= may || ahead.empty;
                }
            }
            Form::NotAhead(inner) => {
                if let Form::One(set) = &**inner {
                    let all_beyond = set.has_all_beyond_ascii();
                    for (byte, left) in (0u32..).zip(&mut left) {
                        *left &= if byte < 128 { !set.has(byte) } else { !all_beyond };
                    }
                }
            }
            other => {
                let one = first(other, rule);
                all.add(&one, &left);
                if !one.empty {
                    return all;
                }
            }
        }
    }
    First { empty: true, ..all }
}
