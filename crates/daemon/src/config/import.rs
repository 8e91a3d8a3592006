//! The original's `/etc/imgstorage.conf` as a configuration of ours.
//!
//! It is JSON: a list with one object of texts. What has no meaning here is kept as a remark, so that nothing gets lost unseen.

use img_storage_model::{
    Fault, HostName, Interval, PoolName,
    attribute::{Speed, SyncWorkers},
};
use serde_json::{Map, Value};
use std::net::IpAddr;

/// What the host is to be; the original's file does not say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A NAS.
    Nas,
    /// A VM container.
    Vm,
}

/// The text of a `config.toml`. `resolve` finds a name's address, if it has one.
///
/// # Errors
/// [`img_storage_model::FaultKind::Invalid`], naming what cannot be understood.
pub fn import(text: &str, role: Role, resolve: impl Fn(&str) -> Option<IpAddr>) -> Result<String, Fault> {
    let mut given = parse(text)?;
    let mut take = |key: &str| given.remove(key).map(|value| (key.to_owned(), plain(&value))).filter(|(_, v)| !v.is_empty());
    let name: HostName = match take("name") {
        Some((_, name)) => name.parse()?,
        None => return Err(Fault::invalid("the original's configuration has no name").next("add \"name\" : \"HOST\"")),
    };
    let named = |key: &str, fault: Fault| Fault { message: format!("{key}: {}", fault.message), ..fault };
    let mut top = Vec::new();
    if let Some((key, value)) = take("frequency") {
        let frequency: Interval = value.parse().map_err(|f| named(&key, f))?;
        top.push(format!("frequency = \"{frequency}\""));
    }
    for (theirs, ours) in [("downloadspeed", "download_speed"), ("uploadspeed", "upload_speed")] {
        if let Some((key, value)) = take(theirs) {
            let speed: Speed = value.parse().map_err(|f| named(&key, f))?;
            top.push(format!("{ours} = \"{speed}\""));
        }
    }
    if let Some((key, value)) = take("img_sync_workers") {
        let workers: SyncWorkers = value.parse().map_err(|f| named(&key, f))?;
        top.push(format!("sync_workers = {workers}"));
    }
    let pool = match take("default_pool") {
        Some((key, value)) => Some(value.parse::<PoolName>().map_err(|f| named(&key, f))?),
        None => None,
    };
    let network = take("network").map(|(_, network)| network);
    let frontend = match take("frontend_name") {
        Some((key, value)) => Some(value.parse::<HostName>().map_err(|f| named(&key, f))?),
        None => None,
    };
    let tls = take("ssl_options").map(|(_, text)| text);
    let mut text = String::from("# From the original's configuration, by img-storage config import.\n");
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    top.iter().for_each(|l| line(l));
    if let Some(frontend) = &frontend {
        line(&format!("\n[frontend]\nname = \"{frontend}\""));
    }
    match role {
        Role::Nas => {
            line(&format!("\n[nas]\nname = \"{name}\""));
            if let Some(network) = network.as_deref().filter(|n| !n.is_empty()) {
                let full = format!("{name}.{network}");
                match resolve(&full) {
                    Some(address) => line(&format!("data_address = \"{address}\"    # {full}")),
                    None => line(&format!("# {} has no address here; give its own:\n# data_address = \"\"", remark(&full))),
                }
            }
            if let Some(pool) = &pool {
                let directory = format!("/{pool}/img-storage");
                line("# A pool is a directory here, empty at first; the original's volumes are not taken over by this.");
                line(&format!("[nas.pools]\n{} = {}", quoted(pool.as_str()), quoted(&directory)));
            }
        }
        Role::Vm => {
            line(&format!("\n[vm]\nname = \"{name}\""));
            if let Some(pool) = &pool {
                line(&format!(
                    "pool = {}    # a directory for local copies, empty at first",
                    quoted(&format!("/{pool}/img-storage"))
                ));
            }
            line("\n# The NASes whose volumes this host takes:\n# [cluster]\n# nases = [\"nas-0-0\"]");
        }
    }
    if let Some(frontend) = &frontend {
        line(&format!("\n[bus]\nhosts = [\"{frontend}\"]    # the original's broker ran on the front end"));
    }
    if let Some(options) = tls {
        let options: Map<String, Value> = serde_json::from_str(&options)
            .map_err(|e| Fault::invalid(format!("ssl_options: it is no JSON object: {e}")).next("mend it, or take it out"))?;
        let hint = if frontend.is_some() { "" } else { "# " };
        for (theirs, ours) in [("ca_certs", "ca"), ("certfile", "certificate"), ("keyfile", "key")] {
            if let Some(path) = options.get(theirs) {
                line(&format!("{hint}{ours} = {}", quoted(&plain(path))));
            }
        }
    }
    line("\n[pki]\ndir = \"/etc/img-storage/pki\"    # what img-storage pki issue made for this host");
    for (key, value) in &given {
        line(&format!("# {} = {} has no meaning here", remark(key), remark(&plain(value))));
    }
    Ok(text)
}

fn parse(text: &str) -> Result<Map<String, Value>, Fault> {
    let bad = |why: String| {
        Fault::invalid(format!("this is not the original's configuration: {why}"))
            .next("it is JSON: [ { \"name\" : \"nas-0-0\", \"network\" : \"local\", … } ]")
    };
    let value: Value = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
    let object = match value {
        Value::Array(mut all) if all.len() == 1 => all.swap_remove(0),
        Value::Array(all) => return Err(bad(format!("it is a list of {}", all.len()))),
        other => other,
    };
    match object {
        Value::Object(object) => Ok(object),
        _ => Err(bad("it has no object with names and values".to_owned())),
    }
}

/// A value as text; the original writes everything as texts, and `None` for nothing.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) if text == "None" => String::new(),
        Value::String(text) => text.trim().to_owned(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// A text as TOML has it on one line: as JSON, where that agrees.
fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string().replace('\x7f', "\\u007F")
}

/// A text in a remark: on its line.
fn remark(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use proptest::prelude::*;

    const THEIRS: &str = r#"[ {
"name" : "nas-0-0",
"network" : "fast",
"default_pool" : "tank",
"img_sync_workers" : "8",
"frequency" : "300",
"uploadspeed" : "10M",
"frontend_name" : "frontend",
"ssl_options" : "{\"ca_certs\":\"/etc/pki/ca.pem\",\"certfile\":\"/etc/pki/c.pem\",\"keyfile\":\"/etc/pki/c.key\",\"cert_reqs\":2}",
"colour" : "red\nnas"
} ]"#;

    #[test]
    fn what_it_says_is_what_we_read() {
        let text = import(THEIRS, Role::Nas, |name| (name == "nas-0-0.fast").then(|| "10.2.0.1".parse().unwrap())).unwrap();
        let config: Config = toml::from_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(config.nas.data_address, Some("10.2.0.1".parse().unwrap()));
        assert_eq!((config.frequency.unwrap().to_string(), config.sync_workers.unwrap().get()), ("5m".to_owned(), 8));
        assert_eq!(config.upload_speed.unwrap().get(), 10 << 20);
        assert_eq!(config.nas.pools.values().next().unwrap().to_str(), Some("/tank/img-storage"));
        let broker = config.broker().unwrap().unwrap();
        assert_eq!(broker.tls.unwrap().ca.to_str(), Some("/etc/pki/ca.pem"));
        assert!(text.contains("# colour = red nas has no meaning here"), "{text}");
    }

    #[test]
    fn what_the_original_itself_writes() {
        let text = "[ {\n\"name\" : \"vm-container-0-0\",\n\"network\" : \"local\",\n\"default_pool\" : \"None\",\n\"img_sync_workers\" : \"8\"\n} ]";
        let ours = import(text, Role::Vm, |_| None).unwrap();
        let config: Config = toml::from_str(&ours).unwrap_or_else(|e| panic!("{e}\n{ours}"));
        assert_eq!(config.vm.name.unwrap().as_str(), "vm-container-0-0");
        assert!(config.vm.pool.is_none() && config.bus.is_none() && config.nas.name.is_none());
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        for (text, says) in [
            ("", "not the original"),
            ("[]", "a list of 0"),
            ("[1]", "no object"),
            ("[{}]", "no name"),
            ("[{\"name\": \"a b\"}]", "a b"),
            ("[{\"name\": \"n\", \"frequency\": \"often\"}]", "frequency"),
            ("[{\"name\": \"n\", \"img_sync_workers\": \"0\"}]", "img_sync_workers"),
            ("[{\"name\": \"n\", \"uploadspeed\": \"fast\"}]", "uploadspeed"),
            ("[{\"name\": \"n\", \"frontend_name\": \"f f\"}]", "frontend_name"),
            ("[{\"name\": \"n\", \"default_pool\": \"a/b\"}]", "default_pool"),
            ("[{\"name\": \"n\", \"ssl_options\": \"x\"}]", "ssl_options"),
        ] {
            let fault = import(text, Role::Nas, |_| None).unwrap_err();
            assert!(fault.message.contains(says), "{text}: {fault}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_imported_can_be_read(pool in "[^\\x00]{0,12}", network in ".{0,12}", other in ".{0,12}") {
            let text = serde_json::json!([{ "name": "n", "default_pool": pool, "network": network, "x": other }]).to_string();
            for role in [Role::Nas, Role::Vm] {
                if let Ok(ours) = import(&text, role, |_| None) {
                    prop_assert!(toml::from_str::<toml::Table>(&ours).is_ok(), "{}", ours);
                }
            }
        }
    }
}
