//! A RabbitMQ of the tests' own: Debian's package, with its own node name, ports, directories and port mapper, on the loopback
//! interface alone or in a lab's own network. A broker that runs on the machine already is not touched.

mod certificates;
mod proxy;

pub use certificates::{Authority, Until};
pub use proxy::Proxy;

use anyhow::{Context as _, bail, ensure};
use img_storage_model::{HostName, broker::rights};
use rand::RngExt as _;
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Where Debian has the server's own scripts; those on the search path switch to another user.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
/// The virtual host.
pub const VHOST: &str = "img-storage";
/// A user that hosts may share, with [`PASSWORD`].
pub const SHARED_USER: &str = "img-storage";
/// The password of every user that has one.
pub const PASSWORD: &str = "for the tests";
/// The same as the broker keeps it: SHA-256 with a salt.
const PASSWORD_HASH: &str = "aW1nc21OQmLCkDcCGrC1+4aWixu+tdBxgYSm0QKP3YJp0a4G";
/// How long it may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(90);

struct Ports {
    tls: u16,
    plain: u16,
    distribution: u16,
    mapper: u16,
}

/// Where a broker runs and is reached.
#[derive(Clone, Debug)]
pub struct Place {
    /// What is put before its commands, to run them in other namespaces of the network and of processes.
    pub wrapper: Vec<String>,
    /// Where it listens.
    pub address: Ipv4Addr,
    /// What its certificate is for: the name of that address to those who reach it.
    pub name: String,
}

impl Default for Place {
    /// This machine, for this machine alone.
    fn default() -> Self {
        Place { wrapper: Vec::new(), address: Ipv4Addr::LOCALHOST, name: "localhost".to_owned() }
    }
}

impl Place {
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some((first, rest)) = self.wrapper.split_first() else { return Command::new(program) };
        let mut command = Command::new(first);
        command.args(rest).arg(program);
        command
    }

    /// Whether somebody listens on its address.
    fn answers(&self, port: u16) -> bool {
        if self.wrapper.is_empty() {
            return TcpStream::connect((self.address, port)).is_ok();
        }
        let mut command = self.command("bash");
        command.args(["-c", &format!("exec 3<> /dev/tcp/{}/{port}", self.address)]).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// Gives a process the signal of this name. Its number is that of the place it runs in.
    fn signal(&self, name: &str, pid: u32) {
        let mut command = self.command("kill");
        let _ = command.args([name, &pid.to_string()]).stderr(Stdio::null()).status();
    }
}

/// A broker; it ends when dropped.
pub struct Broker {
    dir: tempfile::TempDir,
    place: Place,
    ports: Ports,
    authority: Authority,
    mapper: Child,
    server: Option<Child>,
}

impl Broker {
    /// Starts a broker that knows these hosts by their certificates, and the same and [`SHARED_USER`] by [`PASSWORD`].
    ///
    /// # Errors
    /// When it is not installed or does not start; with the end of its log.
    pub async fn start(hosts: &[&str]) -> anyhow::Result<Self> {
        Self::start_in(Place::default(), hosts).await
    }

    /// As [`Broker::start`], somewhere else: for the guests of a lab, in its namespace.
    ///
    /// # Errors
    /// As [`Broker::start`].
    pub async fn start_in(place: Place, hosts: &[&str]) -> anyhow::Result<Self> {
        let mut broker = Self::bare_in(place)?;
        broker.configure(hosts)?;
        broker.resume().await?;
        Ok(broker)
    }

    /// A broker that nobody has set up, and that does not run: see [`Broker::begin`].
    ///
    /// # Errors
    /// When it is not installed.
    pub fn bare() -> anyhow::Result<Self> {
        Self::bare_in(Place::default())
    }

    fn bare_in(place: Place) -> anyhow::Result<Self> {
        let script = Path::new(SCRIPTS).join("rabbitmq-server");
        ensure!(script.exists(), "RabbitMQ is not installed: apt-get install rabbitmq-server, or cargo xtask test");
        let dir = tempfile::Builder::new().prefix("broker").tempdir()?;
        let authority = Authority::new(&dir.path().join("pki"))?;
        let ports = free_ports()?;
        // Its number as it is where it runs, to end it there.
        let mut mapper = place.command("sh");
        mapper.args(["-c", "echo $$ > \"$1\" && exec epmd -address 127.0.0.1 -port \"$2\"", "sh"]);
        mapper.arg(dir.path().join("epmd.pid")).arg(ports.mapper.to_string());
        mapper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mapper = mapper.spawn().context("starting epmd")?;
        let broker = Broker { dir, place, ports, authority, mapper, server: None };
        for dir in ["data", "log", "home"] {
            fs::create_dir(broker.path(dir))?;
        }
        Ok(broker)
    }

    /// Starts a bare one with the configuration that somebody wrote for it, but on a port of its own.
    ///
    /// # Errors
    /// When it does not start; with the end of its log.
    pub async fn begin(&mut self, configuration: &str) -> anyhow::Result<()> {
        const LISTENS: &str = "listeners.ssl.default = 5671";
        ensure!(configuration.contains(LISTENS), "the broker would not listen with TLS:\n{configuration}");
        let own = format!("listeners.tcp = none\nlisteners.ssl.1 = 127.0.0.1:{}", self.ports.tls);
        let more = "log.console = false\nlog.file.level = info\ndisk_free_limit.absolute = 1MB\n";
        fs::write(self.path("rabbitmq.conf"), format!("{}\n{more}", configuration.replace(LISTENS, &own)))?;
        self.resume().await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self, hosts: &[&str]) -> anyhow::Result<()> {
        let Place { address, name, .. } = &self.place;
        let certificates = self.authority.issue(name, Until::Later)?;
        let (pem, root) = (certificates.display(), self.dir.path().display());
        let Ports { tls, plain, .. } = self.ports;
        fs::write(
            self.path("rabbitmq.conf"),
            format!(
                "listeners.tcp.1 = {address}:{plain}\nlisteners.ssl.1 = {address}:{tls}\n\
                 ssl_options.cacertfile = {pem}/ca-cert.pem\nssl_options.certfile = {pem}/server-cert.pem\n\
                 ssl_options.keyfile = {pem}/server-key.pem\nssl_options.verify = verify_peer\n\
                 ssl_options.fail_if_no_peer_cert = true\nssl_options.versions.1 = tlsv1.3\nssl_options.versions.2 = tlsv1.2\n\
                 ssl_cert_login_from = common_name\nauth_mechanisms.1 = EXTERNAL\nauth_mechanisms.2 = PLAIN\n\
                 load_definitions = {root}/definitions.json\nlog.console = false\nlog.file.level = info\n\
                 disk_free_limit.absolute = 1MB\n"
            ),
        )?;
        fs::write(self.path("plugins"), "[rabbitmq_auth_mechanism_ssl].\n")?;
        let user = |name: &str| {
            serde_json::json!({"name": name, "password_hash": PASSWORD_HASH,
                "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": []})
        };
        let allowed = |name: &str, host: Option<&HostName>| {
            let [configure, write, read] = rights(host);
            serde_json::json!({"user": name, "vhost": VHOST, "configure": configure, "write": write, "read": read})
        };
        let mut permissions = vec![allowed(SHARED_USER, None)];
        for host in hosts {
            permissions.push(allowed(host, Some(&host.parse()?)));
        }
        let definitions = serde_json::json!({
            "users": hosts.iter().copied().chain([SHARED_USER]).map(user).collect::<Vec<_>>(),
            "vhosts": [{"name": VHOST}],
            "permissions": permissions,
        });
        Ok(fs::write(self.path("definitions.json"), definitions.to_string())?)
    }

    /// Who issues the hosts' certificates.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Where it listens with TLS.
    pub fn port(&self) -> u16 {
        self.ports.tls
    }

    /// Where it listens without.
    pub fn plain_port(&self) -> u16 {
        self.ports.plain
    }

    fn node(&self) -> String {
        format!("imgstorage{}@localhost", self.ports.tls)
    }

    fn log(&self) -> PathBuf {
        self.path("log").join(format!("{}.log", self.node()))
    }

    fn command(&self, script: &str) -> Command {
        let mut command = self.place.command(Path::new(SCRIPTS).join(script));
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path))).envs(self.environment());
        command.stdin(Stdio::null());
        command
    }

    /// What its commands need besides a search path.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let at = |name: &str| self.path(name).into_os_string();
        vec![
            ("HOME", at("home")),
            ("RABBITMQ_NODENAME", self.node().into()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
            ("ERL_EPMD_PORT", self.ports.mapper.to_string().into()),
            ("RABBITMQ_DIST_PORT", self.ports.distribution.to_string().into()),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}".into()),
            ("RABBITMQ_MNESIA_BASE", at("data")),
            ("RABBITMQ_LOG_BASE", at("log")),
            ("RABBITMQ_PID_FILE", at("pid")),
            ("RABBITMQ_CONFIG_FILE", at("rabbitmq.conf")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", at("none.config")),
            ("RABBITMQ_CONF_ENV_FILE", at("none.env")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", at("plugins")),
            ("LANG", "C.UTF-8".into()),
        ]
    }

    /// Where its commands are.
    pub fn scripts() -> &'static Path {
        Path::new(SCRIPTS)
    }

    /// Starts it (again), with what it had on disk.
    ///
    /// # Errors
    /// When it does not start; with the end of its log.
    pub async fn resume(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let out = File::options().create(true).append(true).open(self.path("out"))?;
        let mut command = self.command("rabbitmq-server");
        command.stdout(out.try_clone()?).stderr(out).process_group(0);
        self.server = Some(command.spawn().context("starting RabbitMQ")?);
        // It listens last, when its definitions are loaded. Its log would not do: that drops what comes in a burst, and with a
        // thousand users to make the line that says that it started is among it.
        while !self.place.answers(self.ports.tls) {
            if let Some(status) = self.server.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("RabbitMQ ended with {status}:\n{}", self.log_tail());
            }
            ensure!(begun.elapsed() < PATIENCE, "RabbitMQ does not start:\n{}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Stops it as its administrator would.
    ///
    /// # Errors
    /// When it does not stop.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        let begun = Instant::now();
        if let Some(pid) = self.pid() {
            self.place.signal("-TERM", pid);
        }
        while server.try_wait()?.is_none() {
            ensure!(begun.elapsed() < PATIENCE, "RabbitMQ does not stop:\n{}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Kills it with -9.
    pub fn kill(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        if let Some(pid) = self.pid() {
            self.place.signal("-KILL", pid);
        }
        // Its script, which runs for as long as it does, has no more to wait for; if it has not written its number yet, this ends
        // the script alone.
        let begun = Instant::now();
        while server.try_wait().is_ok_and(|ended| ended.is_none()) && begun.elapsed() < Duration::from_secs(10) {
            if self.pid().is_none() {
                let _ = server.kill();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = server.kill();
        let _ = server.wait();
    }

    /// The server's process; its script is the parent.
    fn pid(&self) -> Option<u32> {
        number(&self.path("pid"))
    }

    /// Runs `rabbitmqctl`; its output.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub async fn ctl(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut command = tokio::process::Command::from(self.command("rabbitmqctl"));
        command.arg("-q").args(words).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output()).await.context("rabbitmqctl does not end")??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`rabbitmqctl {}`: {}", words.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let mut all = String::new();
        for path in [self.path("out"), self.log()] {
            let text = fs::read(&path).map(|t| String::from_utf8_lossy(&t).into_owned()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            all.push_str(&format!("--- {}\n{}\n", path.display(), lines[lines.len().saturating_sub(40)..].join("\n")));
        }
        all
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        if let Some(pid) = number(&self.path("epmd.pid")) {
            self.place.signal("-KILL", pid);
        }
        let _ = self.mapper.kill();
        let _ = self.mapper.wait();
    }
}

/// The process number in a file.
fn number(file: &Path) -> Option<u32> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Ports that nobody has now, nor gets for a connection or an export while the broker is stopped.
fn free_ports() -> anyhow::Result<Ports> {
    let mut held = Vec::new();
    for _ in 0..1000 {
        held.extend(TcpListener::bind((Ipv4Addr::LOCALHOST, rand::rng().random_range(10_000..20_000))));
        if let [a, b, c, d] = held.as_slice() {
            let port = |l: &TcpListener| l.local_addr().map(|a| a.port());
            return Ok(Ports { tls: port(a)?, plain: port(b)?, distribution: port(c)?, mapper: port(d)? });
        }
    }
    bail!("there are no free ports from 10000 to 20000")
}

/// Whether somebody listens on a port of this machine.
pub fn listens(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}
