//! The state file: the table in force, with its fences, on disk before a put is acknowledged.
//!
//! Two lines: a header with a checksum, and the state as JSON. Written beside the old one, synced, renamed over it, and the
//! directory synced: a crash at any moment leaves the old state or the new one. A file that is there and can not be read is
//! an error; it is never taken for an empty table, because that would be an outage that looks like a start.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::table::ProxyTable;

/// Name of the state file in the state directory.
pub(crate) const FILE: &str = "table.json";
/// Largest state file that is read, in bytes.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
const FORMAT: &str = "cdpipe-proxy-table";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    checksum: String,
}

/// FNV-1a: it has to find a torn or edited file, not an adversary.
fn checksum(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("fnv1a64:{hash:016x}")
}

/// Reads the state. None if there is none yet.
///
/// # Errors
/// One sentence that says what is wrong with the file.
pub(crate) fn load(directory: &Path) -> Result<Option<ProxyTable>, String> {
    let path = directory.join(FILE);
    let bytes = match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
        Ok(meta) if meta.len() > MAX_BYTES => {
            return Err(format!("expected at most {MAX_BYTES} bytes, found {}", meta.len()));
        }
        Ok(_) => fs::read(&path).map_err(|error| error.to_string())?,
    };
    let at = memchr::memchr(b'\n', &bytes).ok_or("expected a header line, found none")?;
    let header: Header = serde_json::from_slice(&bytes[..at])
        .map_err(|error| format!("the header line can not be read: {error}"))?;
    if header.format != FORMAT || header.version != VERSION {
        return Err(format!(
            "expected {FORMAT} version {VERSION}, found {} version {}: it was written by another version of cdpipe",
            header.format, header.version
        ));
    }
    let body = bytes[at + 1..].trim_ascii_end();
    let found = checksum(body);
    if found != header.checksum {
        return Err(format!(
            "expected checksum {}, found {found}: the file was cut short or changed",
            header.checksum
        ));
    }
    let table: ProxyTable =
        serde_json::from_slice(body).map_err(|error| format!("the table can not be read: {error}"))?;
    table.validate().map_err(|error| format!("the table can not be served: {error}"))?;
    Ok(Some(table))
}

/// Writes the state; when this returns it survives a power cut.
///
/// # Errors
/// Of the file system; the old state is then still there.
pub(crate) fn save(directory: &Path, table: &ProxyTable) -> io::Result<()> {
    let body = serde_json::to_vec(table)?;
    let header = Header { format: FORMAT.to_owned(), version: VERSION, checksum: checksum(&body) };
    let mut bytes = serde_json::to_vec(&header)?;
    bytes.push(b'\n');
    bytes.extend_from_slice(&body);
    bytes.push(b'\n');
    let fresh = directory.join(format!("{FILE}.new"));
    let mut file = File::create(&fresh)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&fresh, directory.join(FILE))?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> ProxyTable {
        serde_json::from_str(
            r#"{"revision":7,"routes":[{"epoch":3,"owner":"run-1","table":{
                "route":{"service":"web","host":null,"path":null,"listen":"127.0.0.1:80","object":null},
                "entries":[{"release":"r1","role":"stable","weight_bp":10000,
                            "members":[{"instance":"i1","address":"127.0.0.1:81"}]}],
                "rules":[],"sticky":"none"}}]}"#,
        )
        .expect("a table")
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let directory = tempfile::tempdir().expect("directory");
        assert_eq!(load(directory.path()), Ok(None));
        save(directory.path(), &state()).expect("saved");
        assert_eq!(load(directory.path()), Ok(Some(state())));
    }

    #[test]
    fn any_damage_is_an_error() {
        let directory = tempfile::tempdir().expect("directory");
        save(directory.path(), &state()).expect("saved");
        let path = directory.path().join(FILE);
        let good = fs::read(&path).expect("read");
        for cut in 0..good.len() - 1 {
            fs::write(&path, &good[..cut]).expect("written");
            assert!(load(directory.path()).is_err(), "cut to {cut} bytes");
        }
        for at in (0..good.len() - 1).step_by(3) {
            let mut bad = good.clone();
            bad[at] ^= 0x15;
            fs::write(&path, &bad).expect("written");
            assert!(load(directory.path()).is_err(), "byte {at} changed");
        }
    }
}
