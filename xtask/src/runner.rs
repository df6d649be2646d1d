//! What cargo starts each test program with, so that those that mostly wait (for a cluster, for machines, for a watch to be over) have
//! more tests at a time than the machine has cores. libtest takes that number for a whole process only.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use crate::project;

/// The subcommand of `cargo xtask` that cargo calls.
pub(crate) const NAME: &str = "run-test";
/// What libtest reads.
const THREADS: &str = "RUST_TEST_THREADS";
/// Test programs, and how many of their tests run at a time. All others have as many as there are cores.
const WAITING: [(&str, u32); 6] = [
    ("docker", 4),
    ("docker_pipelines", 3),
    ("hosts", 4),
    ("kubernetes", 5),
    ("kubernetes_load", 3),
    ("kubernetes_restart", 4),
];

/// The option that has cargo start test programs this way.
pub(crate) fn option() -> String {
    let xtask = project::target().join("debug").join("xtask");
    format!("target.'cfg(all())'.runner=['{}', '{NAME}']", xtask.display())
}

/// Becomes the program. Returns only if that can't be.
pub(crate) fn command(raw: &[String]) -> Result<(), String> {
    let Some((program, args)) = raw.split_first() else {
        return Err(format!("`{NAME}` needs a program; cargo calls it"));
    };
    let mut command = Command::new(program);
    command.args(args);
    if let Some(threads) = threads(Path::new(program))
        && std::env::var_os(THREADS).is_none()
    {
        command.env(THREADS, threads.to_string());
    }
    Err(format!("{program}: {}", command.exec()))
}

/// Cargo appends a hash to the name.
fn threads(program: &Path) -> Option<u32> {
    let (name, _) = program.file_name()?.to_str()?.rsplit_once('-')?;
    WAITING.iter().find(|(waiting, _)| *waiting == name).map(|(_, threads)| *threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_known_by_its_name_without_the_hash() {
        assert_eq!(threads(Path::new("/x/target/debug/deps/kubernetes-7be4a9e4dfe22de9")), Some(5));
        assert_eq!(threads(Path::new("/x/target/debug/deps/cdpipe_kubernetes-7be4a9e4dfe22de9")), None);
        assert_eq!(threads(Path::new("docker")), None);
    }

    #[test]
    fn every_program_that_waits_is_there() {
        let manifest = std::fs::read_to_string(project::root().join("tests/Cargo.toml")).unwrap();
        for (name, _) in WAITING {
            assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name}");
        }
    }
}
