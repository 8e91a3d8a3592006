//! `[bus]`, `[cluster]` and `[pki]`: how hosts reach each other, who has a say, and by which certificates.

use super::Config;
use crate::{
    bus::amqp::{Broker, Login, Settings, Tls},
    cluster::Cluster,
};
use img_storage_model::{Fault, HostName, Interval};
use serde::Deserialize;
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// AMQP over TLS, and without.
const PORTS: (u16, u16) = (5671, 5672);
/// Of the original.
const VHOST: &str = "img-storage";
const USER: &str = "img-storage";
const HEARTBEAT: u64 = 10;
/// The longest heartbeat: two of them pass until a host that lost its power is noticed.
const LONGEST_HEARTBEAT: u64 = 60;

/// `[bus]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bus {
    /// The brokers, `HOST` or `HOST:PORT`; any one is enough.
    #[serde(default)]
    pub hosts: Vec<Address>,
    /// The virtual host.
    pub vhost: Option<String>,
    /// Whether to speak TLS. Only brokers on this machine can be spoken to without.
    pub tls: Option<bool>,
    /// How a daemon says who it is.
    #[serde(default)]
    pub auth: Auth,
    /// The user, with `plain`.
    pub user: Option<String>,
    /// A file with the user's password, with `plain`.
    pub password_file: Option<PathBuf>,
    /// Who signs the brokers' certificates.
    pub ca: Option<PathBuf>,
    /// This host's certificate.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// How often each side says that it is there.
    pub heartbeat: Option<Interval>,
    /// A daemon ends after so long without a broker.
    pub quit_without_broker: Option<Interval>,
}

/// How a daemon says who it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    /// By its certificate, whose common name is the host's.
    #[default]
    External,
    /// By a user and a password.
    Plain,
}

/// A host with a port, or without.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Address {
    host: String,
    port: Option<u16>,
}

impl TryFrom<String> for Address {
    type Error = Fault;
    fn try_from(text: String) -> Result<Self, Fault> {
        let bad = |why: &str| {
            Fault::invalid(format!("the broker {text:?} {why}"))
                .next("write it as HOST or HOST:PORT, such as broker.example.org:5671 or [fd00::1]:5671")
        };
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(|| bad("is no address"))?)),
            None if text.parse::<IpAddr>().is_ok() => (text.as_str(), None),
            None => text.split_once(':').map_or((text.as_str(), None), |(host, port)| (host, Some(port))),
        };
        let port = port.map(|p| p.parse().ok().filter(|p| *p != 0).ok_or_else(|| bad("has no port that can be"))).transpose()?;
        let name =
            |host: &str| host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')) && host.len() < 254;
        if host.is_empty() || !(host.parse::<IpAddr>().is_ok() || name(host)) {
            return Err(bad("is no address"));
        }
        Ok(Address { host: host.to_owned(), port })
    }
}

impl Address {
    fn is_here(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

/// `[cluster]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hosts {
    /// The front ends, whose requests are taken.
    pub frontends: Option<Vec<HostName>>,
    /// The NASes, whose volumes there are.
    pub nases: Option<Vec<HostName>>,
    /// Orders of the original's front end are taken. It signs none, so anybody's who can log in to the broker are.
    #[serde(default)]
    pub unsigned_orders: bool,
}

/// `[pki]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issued {
    /// The directory with the certificates that this host was issued.
    pub dir: Option<PathBuf>,
}

impl Config {
    /// How to reach the broker, when there is to be one.
    ///
    /// # Errors
    /// [`img_storage_model::FaultKind::Invalid`] for what does not go together.
    pub fn broker(&self) -> Result<Option<Settings>, Fault> {
        let Some(bus) = &self.bus else { return Ok(None) };
        let bad = |why: &str| Fault::invalid(format!("[bus] {why}")).next("nothing was started; see docs/configuration.md");
        let tls = bus.tls.unwrap_or(true);
        if bus.hosts.is_empty() {
            return Err(bad("hosts is empty"));
        }
        if !tls && !bus.hosts.iter().all(Address::is_here) {
            return Err(bad(
                "tls = false is for a broker on this machine only: over the network everybody could read and speak along",
            ));
        }
        let port = if tls { PORTS.0 } else { PORTS.1 };
        let brokers = bus.hosts.iter().map(|a| Broker { host: a.host.clone(), port: a.port.unwrap_or(port) }).collect();
        let vhost = bus.vhost.clone().unwrap_or_else(|| VHOST.to_owned());
        if vhost.is_empty() || vhost.len() > 255 {
            return Err(bad("vhost must have 1 to 255 bytes"));
        }
        let login = match (bus.auth, &bus.user, &bus.password_file) {
            (Auth::External, None, None) if tls => Login::External,
            (Auth::External, None, None) => return Err(bad("auth = \"external\" needs TLS")),
            (Auth::External, ..) => return Err(bad("user and password_file are for auth = \"plain\"")),
            (Auth::Plain, _, None) => return Err(bad("auth = \"plain\" needs password_file")),
            (Auth::Plain, user, Some(password_file)) => {
                let user = user.clone().unwrap_or_else(|| USER.to_owned());
                if user.is_empty() || user.len() > 127 || user.contains('\0') {
                    return Err(bad("user must have 1 to 127 bytes"));
                }
                Login::Plain { user, password_file: password_file.clone() }
            }
        };
        let heartbeat = bus.heartbeat.map_or(Duration::from_secs(HEARTBEAT), Interval::duration);
        if heartbeat > Duration::from_secs(LONGEST_HEARTBEAT) {
            return Err(bad("heartbeat can be a minute at most"));
        }
        let tls = if tls { Some(self.tls(bus).map_err(bad)?) } else { None };
        let quit_without_broker = bus.quit_without_broker.map(Interval::duration);
        Ok(Some(Settings { brokers, vhost, login, tls, heartbeat, quit_without_broker }))
    }

    fn tls(&self, bus: &Bus) -> Result<Tls, &'static str> {
        let issued = |given: &Option<PathBuf>, name: &str| given.clone().or_else(|| Some(self.pki.dir.as_ref()?.join(name)));
        let ca = issued(&bus.ca, "ca-cert.pem").ok_or("needs a ca, or a [pki] dir with one")?;
        let identity = match (issued(&bus.certificate, "client-cert.pem"), issued(&bus.key, "client-key.pem")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) if bus.auth == Auth::Plain => None,
            (None, None) => return Err("needs a certificate and a key, or a [pki] dir with them"),
            _ => return Err("certificate and key go together"),
        };
        Ok(Tls { ca, identity })
    }

    /// Whether other hosts can be on the bus.
    pub fn is_for_many(&self) -> bool {
        self.bus.as_ref().is_some_and(|bus| !bus.hosts.iter().all(Address::is_here))
    }

    /// Who has a say, besides a front end and a NAS of these names when nothing else is configured.
    pub fn cluster(&self, frontend: &HostName, nas: &HostName) -> Cluster {
        let list = |given: &Option<Vec<HostName>>, default: &HostName| given.clone().unwrap_or_else(|| vec![default.clone()]);
        let mut cluster = Cluster::of(list(&self.cluster.frontends, frontend), list(&self.cluster.nases, nas));
        if self.bus.is_none() && self.cluster.nases.is_none() {
            cluster.nases = None;
        }
        cluster.unsigned_orders = self.cluster.unsigned_orders;
        cluster
    }

    /// The directory of the certificates this host was issued.
    pub fn issued(&self) -> Option<&Path> {
        self.pki.dir.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Option<Settings>, String> {
        toml::from_str::<Config>(text).map_err(|e| e.to_string())?.broker().map_err(|f| f.to_string())
    }

    #[test]
    fn a_broker_is_reached_by_what_the_host_was_issued() {
        let settings = config("[bus]\nhosts = [\"mq1\", \"mq2:5700\", \"[fd00::1]:5701\", \"10.0.0.1\"]\n[pki]\ndir = \"/p\"")
            .unwrap()
            .unwrap();
        let brokers: Vec<String> = settings.brokers.iter().map(ToString::to_string).collect();
        assert_eq!(brokers, ["mq1:5671", "mq2:5700", "[fd00::1]:5701", "10.0.0.1:5671"]);
        assert_eq!((settings.vhost.as_str(), &settings.login), ("img-storage", &Login::External));
        let tls = settings.tls.unwrap();
        assert_eq!(tls.ca, Path::new("/p/ca-cert.pem"));
        assert_eq!(tls.identity, Some(("/p/client-cert.pem".into(), "/p/client-key.pem".into())));
        assert_eq!(config(""), Ok(None));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (text, why) in [
            ("[bus]\nhosts = []\n[pki]\ndir = \"/p\"", "hosts is empty"),
            ("[bus]\nhosts = [\"mq\"]", "needs a ca"),
            ("[bus]\nhosts = [\"mq\"]\nca = \"/c\"", "needs a certificate"),
            ("[bus]\nhosts = [\"mq\"]\nca = \"/c\"\nkey = \"/k\"", "go together"),
            ("[bus]\nhosts = [\"mq\"]\ntls = false\nauth = \"plain\"\npassword_file = \"/w\"", "this machine only"),
            ("[bus]\nhosts = [\"127.0.0.1\"]\ntls = false", "needs TLS"),
            ("[bus]\nhosts = [\"mq\"]\nuser = \"me\"\n[pki]\ndir = \"/p\"", "auth = \"plain\""),
            ("[bus]\nhosts = [\"mq\"]\nauth = \"plain\"\n[pki]\ndir = \"/p\"", "password_file"),
            ("[bus]\nhosts = [\"mq\"]\nauth = \"magic\"", "magic"),
            ("[bus]\nhosts = [\"mq\"]\nvhost = \"\"\n[pki]\ndir = \"/p\"", "vhost"),
            ("[bus]\nhosts = [\"mq\"]\nheartbeat = \"2m\"\n[pki]\ndir = \"/p\"", "heartbeat"),
            ("[bus]\nhosts = [\"mq:0\"]", "port"),
            ("[bus]\nhosts = [\"mq:99999\"]", "port"),
            ("[bus]\nhosts = [\"m q\"]", "no address"),
            ("[bus]\nhosts = [\"\"]", "no address"),
            ("[bus]\nhost = [\"mq\"]", "host"),
            ("[bus]\n", "hosts"),
            ("[cluster]\nfrontend = \"f\"", "frontend"),
            ("[cluster]\nnases = [\"a b\"]", "a b"),
            ("[pki]\ndirectory = \"/p\"", "directory"),
        ] {
            let said = config(text).expect_err(text);
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn on_one_machine_everybody_is_who_they_say() {
        let names: (HostName, HostName) = ("front".parse().unwrap(), "nas".parse().unwrap());
        let cluster = |text: &str| toml::from_str::<Config>(text).unwrap().cluster(&names.0, &names.1);
        assert!(cluster("").is_nas(&names.0));
        let listed = cluster("[cluster]\nnases = [\"n1\", \"n2\"]\nfrontends = [\"f1\"]");
        assert!(listed.is_nas(&"n2".parse().unwrap()) && !listed.is_nas(&names.1) && !listed.is_frontend(&names.0));
        let broker = cluster("[bus]\nhosts = [\"mq\"]");
        assert!(broker.is_nas(&names.1) && !broker.is_nas(&names.0) && broker.is_frontend(&names.0));
    }
}
