//! nginx: a plain upstream for whoever needs a web server that is not ours, and the binary for tests that write their own
//! configuration.

use std::path::Path;
use std::process::Command;

use super::daemon::Daemon;
use super::{For, Part, Place, Trouble, Up, install};
use crate::{net, process, sys};

pub(crate) struct Nginx;

/// The body of every answer.
const BODY: &str = "hello from nginx\\n";

fn daemon(place: &Place) -> Daemon {
    Daemon { dir: place.dir.clone(), name: "nginx" }
}

fn ready(port: u16) -> bool {
    net::http_status(port, "/") == Some(200)
}

/// A whole configuration that writes nowhere but into `dir` and listens on loopback only. `http` goes into its http block.
pub(crate) fn configuration(dir: &Path, workers: &str, http: &str) -> String {
    let dir = dir.display();
    // A master that is root gives its workers an unprivileged user, who may not enter a checkout under /root.
    let user = if sys::is_root() { "user root;\n" } else { "" };
    format!(
        "{user}daemon off;\nworker_processes {workers};\npid {dir}/nginx.own.pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  client_body_temp_path {dir}/t1;\n  proxy_temp_path {dir}/t2;\n  \
         fastcgi_temp_path {dir}/t3;\n  uwsgi_temp_path {dir}/t4;\n  scgi_temp_path {dir}/t5;\n{http}}}\n"
    )
}

fn up(binary: &Path, port: u16) -> Up {
    let url = format!("http://127.0.0.1:{port}");
    Up {
        at: url.clone(),
        env: vec![
            ("CDPIPE_LAB_NGINX".to_owned(), url),
            ("CDPIPE_LAB_NGINX_BIN".to_owned(), binary.display().to_string()),
        ],
    }
}

impl Part for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn about(&self) -> &'static str {
        "an upstream that is not ours; the peer of `cdpipe proxy`"
    }

    fn used_by(&self) -> &'static [For] {
        &[For::Test, For::Bench]
    }

    fn up(&self, place: &Place) -> Result<Up, Trouble> {
        let binary = install::debian("nginx-light", "nginx")?;
        let command = |port: u16| {
            let file = place.dir.join("nginx.conf");
            let server =
                format!("  server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"{BODY}\"; }} }}\n");
            process::write_file(&file, &configuration(&place.dir, "1", &server))?;
            let mut command = Command::new(&binary);
            command.arg("-p").arg(&place.dir).arg("-c").arg(&file).args(["-e", "stderr"]);
            Ok(command)
        };
        daemon(place).up(command, ready).map(|port| up(&binary, port))
    }

    fn down(&self, place: &Place) -> Result<bool, String> {
        daemon(place).down()
    }

    fn status(&self, place: &Place) -> Option<Up> {
        let binary = crate::project::find("nginx")?;
        daemon(place).port(ready).map(|port| up(&binary, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_stays_in_its_folder() {
        let text = configuration(Path::new("/x/nginx"), "2", "  server {}\n");
        assert!(text.contains("worker_processes 2;\npid /x/nginx/nginx.own.pid;"), "{text}");
        assert!(text.ends_with("  scgi_temp_path /x/nginx/t5;\n  server {}\n}\n"), "{text}");
    }
}
