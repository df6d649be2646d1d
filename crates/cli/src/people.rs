//! In whose name an approval is given.

use std::process::{Command, Stdio};

/// The name under which `me` may approve: the user's own if it is listed or nobody is, else the first group of the user that is
/// listed. `None` if the user may not.
pub(crate) fn name_for(by: &[String], me: &str) -> Option<String> {
    if by.is_empty() || by.iter().any(|name| name == me) {
        return Some(me.to_owned());
    }
    let groups = groups();
    by.iter().find(|name| groups.contains(name)).cloned()
}

/// The person who approves in this name: the user, where it is the name of a group of theirs; else whoever is named.
pub(crate) fn person_of(by: &str, me: &str) -> String {
    if by != me && groups().iter().any(|group| group == by) { me.to_owned() } else { by.to_owned() }
}

/// Names of the groups that the user is in; asked once.
fn groups() -> &'static [String] {
    static GROUPS: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();
    GROUPS.get_or_init(|| {
        // `id` knows every source of names that the system is set up for; reading /etc/group would miss some.
        let output = Command::new("id").arg("-Gn").stdin(Stdio::null()).stderr(Stdio::null()).output();
        output
            .map(|output| {
                String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect()
            })
            .unwrap_or_default()
    })
}
