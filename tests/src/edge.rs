//! A real nginx or HAProxy before the shop, on loopback, in a folder of the test's own, and a pipeline that deploys behind it.

use crate::deployed::{Deployed, comes_true};
use crate::place::{Place, PlaceError, binary};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a program may take to listen.
const UP_WITHIN: Duration = Duration::from_secs(20);

/// Which router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Router {
    /// With a server of cdpipe's own (`listen`).
    Nginx,
    /// With a server that the user wrote, which names cdpipe's variable.
    NginxOwnServer,
    /// With a backend of slots.
    Haproxy,
}

/// A shop behind a router.
#[derive(Debug)]
pub struct Edge {
    /// The pipeline and where users come in.
    pub shop: Deployed,
    router: Router,
    program: PathBuf,
    process: Option<Child>,
}

/// The binary of a router: where the lab says it is, else where Debian puts it.
pub fn program(router: Router) -> Option<PathBuf> {
    let (variable, path) = match router {
        Router::Nginx | Router::NginxOwnServer => ("CDPIPE_LAB_NGINX_BIN", "/usr/sbin/nginx"),
        Router::Haproxy => ("CDPIPE_LAB_HAPROXY_BIN", "/usr/sbin/haproxy"),
    };
    let path = std::env::var_os(variable).map_or_else(|| PathBuf::from(path), PathBuf::from);
    path.is_file().then_some(path)
}

impl Edge {
    /// Starts the router and writes a pipeline with this strategy. `within` is how long an instance may take to be ready.
    ///
    /// # Errors
    /// If a binary is missing, or the router does not come up.
    pub fn with(router: Router, strategy: &str, within: &str) -> Result<Self, PlaceError> {
        let pipeline = include_str!("../pipelines/edge.cd");
        Self::of(router, &pipeline.replace("@STRATEGY@", strategy).replace("@WITHIN@", within))
    }

    /// The same with a pipeline: `@TRAFFIC@` and `@SHOP@` in it are replaced.
    ///
    /// # Errors
    /// If a binary is missing, or the router does not come up.
    pub fn of(router: Router, pipeline: &str) -> Result<Self, PlaceError> {
        let missing = || PlaceError::NotBuilt(PathBuf::from("nginx or haproxy"));
        let program = program(router).ok_or_else(missing)?;
        let place = Place::new()?;
        let users = SocketAddr::from(([127, 0, 0, 1], crate::ports::free()?));
        let status = SocketAddr::from(([127, 0, 0, 1], crate::ports::free()?));
        let folder = place.work();
        let at = folder.display();
        std::fs::create_dir_all(folder.join("edge"))?;
        let nginx = |listen: &str| {
            let bin = program.display();
            format!(
                "nginx {{\n    config = \"edge/shop.conf\"\n    status = \"{status}\"\n    {listen}\n    \
                 test   = [\"{bin}\", \"-p\", \"{at}/edge\", \"-e\", \"stderr\", \"-c\", \"{at}/edge/nginx.conf\", \"-t\"]\n    \
                 reload = [\"{bin}\", \"-p\", \"{at}/edge\", \"-e\", \"stderr\", \"-c\", \"{at}/edge/nginx.conf\", \"-s\", \"reload\"]\n  }}"
            )
        };
        let traffic = match router {
            Router::Nginx => nginx(&format!("listen = \"{users}\"")),
            Router::NginxOwnServer => nginx(""),
            Router::Haproxy => "haproxy { socket = \"edge/haproxy.sock\" }".to_owned(),
        };
        let shop = binary("shop")?;
        let pipeline = pipeline.replace("@TRAFFIC@", &traffic).replace("@SHOP@", &shop.to_string_lossy());
        place.write(crate::deployed::FILE, pipeline)?;
        let mut edge = Self { shop: Deployed { place, address: users }, router, program, process: None };
        edge.configure(users)?;
        edge.start()?;
        Ok(edge)
    }

    fn configure(&self, users: SocketAddr) -> std::io::Result<()> {
        let folder = self.folder();
        let at = folder.display();
        if self.router == Router::Haproxy {
            let text = format!(
                "global\n  stats socket {at}/haproxy.sock level admin\n  maxconn 2000\ndefaults\n  mode http\n  timeout connect 5s\n  \
                 timeout client 60s\n  timeout server 60s\n  timeout tunnel 60s\nfrontend users\n  bind {users}\n  \
                 default_backend shop\nbackend shop\n  balance roundrobin\n  server-template cdpipe 1-10 127.0.0.1:1 disabled\n"
            );
            return std::fs::write(folder.join("haproxy.cfg"), text);
        }
        // A master that is root gives its workers an unprivileged user, who may not enter the test's folder.
        let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
        let own = if self.router == Router::NginxOwnServer {
            std::fs::write(
                folder.join("shop.conf"),
                "# cdpipe: replace me\nmap \"\" $cdpipe_upstream_shop { default 127.0.0.1:1; }\n\
                 map \"\" $cdpipe_role { default \"\"; }\nmap \"\" $cdpipe_connection { default close; }\n",
            )?;
            format!(
                "  server {{\n    listen {users};\n    location / {{\n      proxy_pass http://$cdpipe_upstream_shop;\n      \
                 proxy_http_version 1.1;\n      proxy_buffering off;\n      client_max_body_size 0;\n      \
                 proxy_set_header Host $host;\n      proxy_set_header Upgrade $http_upgrade;\n      \
                 proxy_set_header Connection $cdpipe_connection;\n      add_header x-role $cdpipe_role always;\n    }}\n  }}\n"
            )
        } else {
            String::new()
        };
        let text = format!(
            "{user}daemon off;\nworker_processes 2;\npid {at}/nginx.pid;\nerror_log {at}/error.log notice;\n\
             events {{ worker_connections 2048; }}\nhttp {{\n  access_log off;\n  client_body_temp_path {at}/t1;\n  \
             proxy_temp_path {at}/t2;\n  fastcgi_temp_path {at}/t3;\n  uwsgi_temp_path {at}/t4;\n  scgi_temp_path {at}/t5;\n  \
             include {at}/shop.conf*;\n{own}}}\n"
        )
        // A glob, so that nginx starts before there is a file; but no `.old`, `.new` or `.lock`.
        .replace("shop.conf*", "shop.con[f]");
        std::fs::write(folder.join("nginx.conf"), text)
    }

    /// The router's folder.
    pub fn folder(&self) -> PathBuf {
        self.shop.place.work().join("edge")
    }

    /// Starts the router and waits until it is there.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(&mut self) -> std::io::Result<()> {
        let folder = self.folder();
        let mut command = Command::new(&self.program);
        match self.router {
            Router::Haproxy => {
                command.arg("-db").arg("-f").arg(folder.join("haproxy.cfg"));
            }
            Router::Nginx | Router::NginxOwnServer => {
                command.arg("-p").arg(&folder).args(["-e", "stderr", "-c"]).arg(folder.join("nginx.conf"));
            }
        }
        let log = std::fs::File::create(folder.join("router.log"))?;
        command.current_dir(&folder).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.process = Some(command.spawn()?);
        let users = self.shop.address;
        let up = comes_true(UP_WITHIN, || match self.router {
            // Without a route it listens nowhere yet; its pid file comes with its first configuration.
            Router::Nginx => {
                std::fs::read_to_string(folder.join("nginx.pid")).is_ok_and(|pid| !pid.trim().is_empty())
            }
            _ => TcpStream::connect(users).is_ok(),
        });
        if up { Ok(()) } else { Err(std::io::Error::other(format!("no router: {}", self.log()))) }
    }

    /// Kills the router.
    pub fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // nginx's workers follow a master that is asked to end at once, not one that is killed.
        if let Some(pid) = rustix::process::Pid::from_raw(process.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if !comes_true(Duration::from_secs(5), || matches!(process.try_wait(), Ok(Some(_)))) {
            let _ = process.kill();
        }
        let _ = process.wait();
    }

    /// Says something to HAProxy's runtime socket, as a person might.
    ///
    /// # Errors
    /// If nobody answers.
    pub fn socket(&self, commands: &str) -> std::io::Result<String> {
        let mut stream = std::os::unix::net::UnixStream::connect(self.folder().join("haproxy.sock"))?;
        stream.write_all(commands.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// What the router said.
    pub fn log(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.folder().join(name)).unwrap_or_default();
        read("router.log") + &read("error.log")
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.kill();
    }
}
