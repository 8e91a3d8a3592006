//! What there is on a RabbitMQ broker, by name, and what each host may do there.

use crate::HostName;

/// Where every message goes through; the original's.
pub const EXCHANGE: &str = "rocks.vm-manage";
/// With a host's name behind it, the queue by which nobody else can have that name.
pub const NAME_QUEUE: &str = "img-storage.name.";

/// What a user may configure, write and read, as the three patterns of `set_permissions`: that of one host, or one that several
/// hosts share.
pub fn rights(host: Option<&HostName>) -> [String; 3] {
    let literal = |name: &str| name.replace('.', "\\.");
    let (exchange, names) = (literal(EXCHANGE), literal(NAME_QUEUE));
    let name = host.map_or_else(|| ".*".to_owned(), |host| literal(host.as_str()));
    // The broker names a host's queues.
    let own = "amq\\.gen-.*";
    [
        // It declares its queue, the exchange, and the queue of its name.
        format!("^({own}|{exchange}|{names}{name})$"),
        // It binds its queue, sends to hosts, and answers whoever asks with a queue of their own.
        format!("^({own}|{exchange}|amq\\.default)$"),
        // It binds to the exchange and reads its own queue.
        format!("^({own}|{exchange})$"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_may_only_do_what_it_must() {
        let [configure, write, read] = rights(Some(&"nas-0.0".parse().unwrap()));
        assert_eq!(configure, r"^(amq\.gen-.*|rocks\.vm-manage|img-storage\.name\.nas-0\.0)$");
        assert_eq!(write, r"^(amq\.gen-.*|rocks\.vm-manage|amq\.default)$");
        assert_eq!(read, r"^(amq\.gen-.*|rocks\.vm-manage)$");
        let [shared, also_write, also_read] = rights(None);
        assert_eq!(shared, r"^(amq\.gen-.*|rocks\.vm-manage|img-storage\.name\..*)$");
        assert_eq!([also_write, also_read], [write, read]);
    }
}
