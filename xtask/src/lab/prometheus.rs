//! Prometheus: a real one for metric gates and watches. It scrapes itself each second, and whatever a test puts into the
//! folder of targets (file-based discovery), so that a test's own service is measured the way users' services are.

use std::fs;
use std::process::Command;

use super::daemon::Daemon;
use super::{For, Part, Place, Trouble, Up, install};
use crate::{net, process};

pub(crate) struct Prometheus;

fn daemon(place: &Place) -> Daemon {
    Daemon { dir: place.dir.clone(), name: "prometheus" }
}

fn ready(port: u16) -> bool {
    net::http_status(port, "/-/ready") == Some(200)
}

fn up(place: &Place, port: u16) -> Up {
    let url = format!("http://127.0.0.1:{port}");
    let targets = place.dir.join("targets").display().to_string();
    Up {
        at: url.clone(),
        env: vec![
            ("CDPIPE_LAB_PROMETHEUS".to_owned(), url),
            ("CDPIPE_LAB_PROMETHEUS_TARGETS".to_owned(), targets),
        ],
    }
}

fn configuration(place: &Place, port: u16) -> String {
    let targets = place.dir.join("targets");
    format!(
        "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\n  evaluation_interval: 1s\n\
         scrape_configs:\n\
         \x20 - job_name: prometheus\n    static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n\
         \x20 - job_name: tests\n    file_sd_configs: [{{files: ['{}/*.json'], refresh_interval: 1s}}]\n",
        targets.display()
    )
}

impl Part for Prometheus {
    fn name(&self) -> &'static str {
        "prometheus"
    }

    fn about(&self) -> &'static str {
        "metric gates and watches ask it"
    }

    fn used_by(&self) -> &'static [For] {
        &[For::Test]
    }

    fn up(&self, place: &Place) -> Result<Up, Trouble> {
        let binary = install::debian("prometheus", "prometheus")?;
        let failed = |error: std::io::Error| Trouble::Broken(format!("{}: {error}", place.dir.display()));
        fs::create_dir_all(place.dir.join("targets")).map_err(failed)?;
        let command = |port: u16| {
            let file = place.dir.join("prometheus.yml");
            process::write_file(&file, &configuration(place, port))?;
            let mut command = Command::new(&binary);
            command.arg(format!("--config.file={}", file.display()));
            command.arg(format!("--storage.tsdb.path={}", place.dir.join("data").display()));
            command
                .arg("--storage.tsdb.retention.time=1d")
                .arg(format!("--web.listen-address=127.0.0.1:{port}"));
            Ok(command)
        };
        daemon(place).up(command, ready).map(|port| up(place, port))
    }

    fn down(&self, place: &Place) -> Result<bool, String> {
        let ran = daemon(place).down()?;
        // The measurements of one run mean nothing to the next, and targets of tests that ended would be asked in vain.
        for dir in ["data", "targets"] {
            match fs::remove_dir_all(place.dir.join(dir)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(format!("{dir}: {error}"));
                }
                _ => {}
            }
        }
        Ok(ran)
    }

    fn status(&self, place: &Place) -> Option<Up> {
        daemon(place).port(ready).map(|port| up(place, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_its_port_and_targets() {
        let place = Place { dir: "/x/.lab/prometheus".into() };
        let text = configuration(&place, 9999);
        assert!(
            text.contains(
                "\n  - job_name: prometheus\n    static_configs: [{targets: ['127.0.0.1:9999']}]\n"
            ),
            "{text}"
        );
        assert!(text.contains("files: ['/x/.lab/prometheus/targets/*.json']"), "{text}");
    }
}
