//! Paths into JSON documents: `data.items[0].errors`.

use serde_json::Value;

/// What stands at the path. The empty path is the document itself.
///
/// # Errors
/// Where the path leaves the document, in one sentence.
pub(crate) fn at<'a>(document: &'a Value, path: &str) -> Result<&'a Value, String> {
    let mut value = document;
    let mut walked = String::new();
    for part in parts(path)? {
        let next = match &part {
            Part::Key(key) => value.get(key),
            Part::Index(index) => value.get(index),
        };
        match &part {
            Part::Key(key) => {
                walked = if walked.is_empty() { key.clone() } else { format!("{walked}.{key}") }
            }
            Part::Index(index) => walked = format!("{walked}[{index}]"),
        }
        value = next.ok_or_else(|| format!("there is no `{walked}` in the answer"))?;
    }
    Ok(value)
}

enum Part {
    Key(String),
    Index(usize),
}

fn parts(path: &str) -> Result<Vec<Part>, String> {
    let path = path.trim().trim_start_matches('$').trim_start_matches('.');
    let mut parts = Vec::new();
    for piece in path.split('.').filter(|piece| !piece.is_empty()) {
        let (key, mut rest) = piece.split_at(piece.find('[').unwrap_or(piece.len()));
        if !key.is_empty() {
            parts.push(Part::Key(key.to_owned()));
        }
        while let Some(inside) = rest.strip_prefix('[') {
            let (index, after) =
                inside.split_once(']').ok_or_else(|| format!("`{path}` lacks a closing bracket"))?;
            parts.push(match index.parse() {
                Ok(index) => Part::Index(index),
                Err(_) => Part::Key(index.trim_matches(['"', '\'']).to_owned()),
            });
            rest = after;
        }
    }
    Ok(parts)
}

/// The number at the path: a number, or a text that is one.
///
/// # Errors
/// Why there is none, in one sentence.
pub(crate) fn number_at(document: &Value, path: &str) -> Result<f64, String> {
    match at(document, path)? {
        Value::Number(number) => number.as_f64().ok_or_else(|| format!("`{path}` is too large")),
        Value::String(text) => text.trim().parse().map_err(|_| format!("`{path}` is {text:?}, not a number")),
        Value::Null => Err(format!("`{path}` is null")),
        other => Err(format!("`{path}` is {other}, not a number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_and_says_where_it_stopped() {
        let document = serde_json::json!({"data": {"items": [{"errors": 3}, {"errors": "4.5"}], "a b": 1}});
        assert_eq!(number_at(&document, "data.items[0].errors"), Ok(3.0));
        assert_eq!(number_at(&document, "$.data.items[1].errors"), Ok(4.5));
        assert_eq!(number_at(&document, "data['a b']"), Ok(1.0));
        assert_eq!(
            number_at(&document, "data.items[2].errors").unwrap_err(),
            "there is no `data.items[2]` in the answer"
        );
        assert!(number_at(&document, "data.items").unwrap_err().contains("not a number"));
        assert!(number_at(&document, "data[0").is_err());
    }
}
