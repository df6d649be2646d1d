//! A change of one file that several runs share.

use cdpipe_model::fault::Fault;
use cdpipe_model::ports::Call;
use cdpipe_model::transport::Transport;

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
        let said: Vec<String> = ran.stderr.lines().chain(ran.stdout.lines()).map(str::to_owned).collect();
        let said = said[said.len().saturating_sub(12)..].to_vec();
        let (place, last) = (transport.place(), last(&said));
        let fault = match ran.status {
            0 => return Ok(true),
            73 => return Ok(false),
            72 => Fault::new("busy", format!("somebody else has held {path}.lock on {place} for too long"))
                .transient(),
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
            71 | 74 => Fault::new("file-failed", format!("cannot write {path} on {place}: {last}"))
                .help("its folder must exist, and cdpipe must be allowed to write there"),
            127 => Fault::new("command-failed", format!("a command is missing on {place}: {last}"))
                .help("`sh`, `flock`, `grep` and the usual file commands must be there"),
            status => Fault::new(
                "command-failed",
                format!("changing {path} on {place} ended with status {status}: {last}"),
            ),
        };
        Err(fault.details(said))
    }
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
