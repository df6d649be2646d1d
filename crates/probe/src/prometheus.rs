//! Instant queries to a Prometheus server's HTTP API (`/api/v1/query`, stable since version 2.0).

use serde_json::Value;

/// The URL of an instant query.
pub(crate) fn query_url(base: &str, query: &str) -> String {
    let encoded: String = query
        .bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect();
    format!("{}/api/v1/query?query={encoded}", base.trim_end_matches('/'))
}

/// The one number of an answer; `Ok(None)` if the result is empty or not a number.
///
/// # Errors
/// If it is not an answer of that API, or holds more than one series.
pub(crate) fn read(body: &str) -> Result<Option<f64>, String> {
    let document: Value = serde_json::from_str(body)
        .map_err(|_| "the answer is not JSON; is this a Prometheus server?".to_owned())?;
    if document["status"] != "success" {
        return Err(format!(
            "the query failed: {}",
            document["error"].as_str().unwrap_or("no reason was given")
        ));
    }
    let data = &document["data"];
    let pair = match data["resultType"].as_str() {
        Some("scalar") => &data["result"],
        Some("vector") => match data["result"].as_array().map(Vec::as_slice) {
            Some([]) => return Ok(None),
            Some([one]) => &one["value"],
            Some(many) => {
                return Err(format!(
                    "the query gives {} series; wrap it in sum(), max() or avg()",
                    many.len()
                ));
            }
            None => return Err("the answer has no result".to_owned()),
        },
        other => return Err(format!("the query gives a {}, not a number", other.unwrap_or("nothing"))),
    };
    let number = pair[1].as_str().and_then(|text| text.parse::<f64>().ok());
    // NaN is what 0/0 gives: no traffic, so no data.
    Ok(number.filter(|number| number.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_one_number_or_says_why_not() {
        let vector = |items: &str| {
            format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{items}]}}}}"#)
        };
        assert_eq!(read(&vector(r#"{"metric":{},"value":[1,"0.25"]}"#)), Ok(Some(0.25)));
        assert_eq!(read(&vector(r#"{"metric":{},"value":[1,"NaN"]}"#)), Ok(None));
        assert_eq!(read(&vector("")), Ok(None));
        assert!(read(&vector(r#"{"value":[1,"1"]},{"value":[1,"2"]}"#)).unwrap_err().contains("2 series"));
        let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1,"7"]}}"#;
        assert_eq!(read(scalar), Ok(Some(7.0)));
        let error = r#"{"status":"error","errorType":"bad_data","error":"parse error at char 3"}"#;
        assert!(read(error).unwrap_err().contains("parse error at char 3"));
        assert!(read("<html>").unwrap_err().contains("not JSON"));
    }
}
