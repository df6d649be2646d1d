//! A change of one file that several runs share.

use cdpipe_model::fault::Fault;
use cdpipe_model::ports::Call;
use cdpipe_model::transport::{Ran, Transport};

/// One change of the file, all under a lock that ends with the process that holds it: compare, write beside, move over, test, reload, or
/// put the old one back. Arguments: the file, its expected second line, the test, the reload (empty: none is needed).
const CHANGE: &str = r#"set -u
file=$1 expected=$2 check=$3 reload=$4 end=$5
umask 022
exec 9>>"$file.lock" || exit 71
flock -w 15 9 || { [ $? = 127 ] && exit 127; exit 72; }
found=absent
[ ! -e "$file" ] || found=$(sed -n 2p "$file")
if [ "$found" != "$expected" ]; then exit 73; fi
if [ -e "$file" ]; then
  cp -p "$file" "$file.old" && cp -p "$file" "$file.new" || exit 74
else
  rm -f "$file.old" "$file.new"
fi
cat >"$file.new" || exit 74
if [ "$end" != "" ] && [ "$(tail -n 1 "$file.new")" != "$end" ]; then rm -f "$file.new"; exit 74; fi
sync "$file.new" 2>/dev/null
mv -f "$file.new" "$file" || exit 74
back() { if [ -e "$file.old" ]; then cp -p "$file.old" "$file.new" && mv -f "$file.new" "$file"; else rm -f "$file"; fi; }
sh -c "$check" 9>&- </dev/null || { back; exit 75; }
if [ "$reload" != "" ]; then sh -c "$reload" 9>&- </dev/null || { back; exit 76; }; fi
exit 0
"#;

/// Removes the file, under the same lock, if nobody else has changed it. Arguments: the file, its expected second line.
const REMOVE: &str = r#"set -u
file=$1 expected=$2
exec 9>>"$file.lock" || exit 71
flock -w 15 9 || { [ $? = 127 ] && exit 127; exit 72; }
[ -e "$file" ] && [ "$(sed -n 2p "$file")" = "$expected" ] || exit 73
rm -f "$file" || exit 74
exit 0
"#;

/// Takes back a file that was not there before. Answers `false` if somebody else has changed it since.
///
/// # Errors
/// `busy`, `file-failed`, `command-failed`.
pub(crate) async fn take_back(
    call: Call<'_>,
    transport: &dyn Transport,
    path: &str,
    mark: &str,
) -> Result<bool, Fault> {
    let argv = ["sh", "-c", REMOVE, "cdpipe", path, mark].map(str::to_owned);
    let ran = transport.exec(call, &argv, b"").await?;
    match ran.status {
        0 => Ok(true),
        73 => Ok(false),
        status => {
            let said = said(&ran);
            Err(general(status, path, &transport.place(), &last(&said)).details(said))
        }
    }
}

/// A change of a file of ours.
pub(crate) struct Change<'a> {
    /// Path of the file.
    pub(crate) path: &'a str,
    /// Its second line as it was read; `absent` if there was no file.
    pub(crate) mark: &'a str,
    /// The new text.
    pub(crate) text: &'a str,
    /// Last line of a text that is whole; empty if it has none.
    pub(crate) end: &'a str,
    /// What tests it once it is in place.
    pub(crate) check: &'a [String],
    /// What makes it known; empty if nothing has to.
    pub(crate) reload: &'a [String],
}

impl Change<'_> {
    /// Carries it out. Answers `false` if somebody else was first.
    ///
    /// # Errors
    /// `config-refused` and `router-unreachable`, with the old file back; `busy`, `file-failed`, `command-failed`.
    pub(crate) async fn carry_out(&self, call: Call<'_>, transport: &dyn Transport) -> Result<bool, Fault> {
        let path = self.path;
        let (check, reload) = (shell_line(self.check), shell_line(self.reload));
        let argv = ["sh", "-c", CHANGE, "cdpipe", path, self.mark, &check, &reload, self.end];
        let ran = transport.exec(call, &argv.map(str::to_owned), self.text.as_bytes()).await?;
        let said = said(&ran);
        let (place, last) = (transport.place(), last(&said));
        let fault = match ran.status {
            0 => return Ok(true),
            73 => return Ok(false),
            75 => Fault::new(
                "config-refused",
                format!("nginx on {place} refuses the new {path}; the file is as it was: {last}"),
            )
            .help(format!(
                "`{}` is what said so; it tests the whole configuration, not this file alone",
                self.check.join(" ")
            )),
            76 => Fault::new(
                "router-unreachable",
                format!("`{}` failed on {place}, and {path} is as it was: {last}", self.reload.join(" ")),
            )
            .help("see whether nginx runs, and set `reload` to the command that reloads it")
            .transient(),
            status => general(status, path, &place, &last),
        };
        Err(fault.details(said))
    }
}

/// What any change of a file can end with.
fn general(status: i32, path: &str, place: &str, last: &str) -> Fault {
    match status {
        72 => Fault::new("busy", format!("somebody else has held {path}.lock on {place} for too long"))
            .transient(),
        71 | 74 => Fault::new("file-failed", format!("cannot write {path} on {place}: {last}"))
            .help("its folder must exist, and cdpipe must be allowed to write there"),
        127 => Fault::new("command-failed", format!("a command is missing on {place}: {last}"))
            .help("`sh`, `flock`, `grep` and the usual file commands must be there"),
        status => Fault::new(
            "command-failed",
            format!("changing {path} on {place} ended with status {status}: {last}"),
        ),
    }
}

/// The last lines that it said.
fn said(ran: &Ran) -> Vec<String> {
    let said: Vec<String> = ran.stderr.lines().chain(ran.stdout.lines()).map(str::to_owned).collect();
    said[said.len().saturating_sub(12)..].to_vec()
}

/// A line for `sh` that is exactly these words.
fn shell_line(argv: &[String]) -> String {
    argv.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect::<Vec<_>>().join(" ")
}

/// The line that says most: nginx's own complaint, else the last one.
fn last(said: &[String]) -> String {
    let complaint = said.iter().find(|line| line.contains("[emerg]") || line.contains("[alert]"));
    complaint.or(said.last()).cloned().unwrap_or_else(|| "it said nothing".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::{Place, call};
    use std::time::Duration;

    #[tokio::test]
    async fn a_file_that_somebody_else_has_written_meanwhile_is_not_taken_back() {
        let place = Place::new(|_, _| None, |_| None);
        let path = place.path("shop.conf");
        let call = call(1, Duration::from_secs(20));
        std::fs::write(&path, "# title\n# theirs\n").expect("a file");
        assert!(!take_back(call, &*place, &path, "# ours").await.expect("is looked at"));
        assert!(std::path::Path::new(&path).exists());
        assert!(take_back(call, &*place, &path, "# theirs").await.expect("is removed"));
        assert!(!std::path::Path::new(&path).exists());
        assert!(!take_back(call, &*place, &path, "# theirs").await.expect("is gone"));
    }
}
