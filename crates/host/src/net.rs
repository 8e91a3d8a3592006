//! This host's addresses, and networks they may lie in.

use crate::HostError;
use serde::Deserialize;
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    str::FromStr,
};

/// A network, such as `10.1.0.0/24` or `fd00::/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    /// Whether an address lies in it.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32 - self.bits),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128 - self.bits),
            _ => false,
        }
    }
}

/// Whether two addresses are the same but for their last bits.
fn same(a: u128, b: u128, rest: u32) -> bool {
    a.checked_shr(rest) == b.checked_shr(rest)
}

impl FromStr for Network {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no network; write it as 10.1.0.0/24 or fd00::/64");
        let (address, rest) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        // As one writes it, and not +8 or 08.
        let bits = rest.parse::<u32>().ok().filter(|bits| *bits <= most && bits.to_string() == rest);
        Ok(Network { address, bits: bits.ok_or_else(bad)? })
    }
}

impl TryFrom<String> for Network {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// The addresses of this host, as the kernel lists them.
///
/// # Errors
/// When neither list can be read: that is not the same as having no address.
pub fn addresses() -> Result<Vec<IpAddr>, HostError> {
    let read = |path: &str| std::fs::read_to_string(Path::new(path));
    let (four, six) = (read("/proc/net/fib_trie"), read("/proc/net/if_inet6"));
    if let (Err(why), Err(_)) = (&four, &six) {
        return Err(HostError(format!("the addresses of this host cannot be told: /proc/net/fib_trie: {why}")));
    }
    let mut all: Vec<IpAddr> = four.map(|text| of_trie(&text)).unwrap_or_default();
    all.extend(six.map(|text| of_list(&text)).unwrap_or_default());
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// Those of `/proc/net/fib_trie`: a line with the address, and under it one that says that it is the host's.
fn of_trie(text: &str) -> Vec<IpAddr> {
    let mut last: Option<Ipv4Addr> = None;
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some((_, address)) = line.split_once("|-- ") {
            last = address.trim().parse().ok();
        } else if line.trim() == "/32 host LOCAL" {
            found.extend(last.map(IpAddr::V4));
        }
    }
    found
}

/// Those of `/proc/net/if_inet6`, but those of one link only: nobody can connect to them without naming it.
fn of_list(text: &str) -> Vec<IpAddr> {
    let address = |line: &str| {
        let bits = u128::from_str_radix(line.split_whitespace().next()?, 16).ok()?;
        Some(Ipv6Addr::from_bits(bits)).filter(|a| !a.is_unicast_link_local()).map(IpAddr::V6)
    };
    text.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let within = |network: &str, address: &str| network.parse::<Network>().unwrap().contains(address.parse().unwrap());
        assert!(within("10.1.0.0/24", "10.1.0.7") && !within("10.1.0.0/24", "10.1.1.7") && within("0.0.0.0/0", "9.9.9.9"));
        assert!(within("fd00:1::/32", "fd00:1:2::3") && !within("fd00:1::/32", "fd00:2::3") && !within("::/0", "10.0.0.1"));
        assert!(within("10.1.0.5/32", "10.1.0.5") && within("::1/128", "::1"));
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0/8", "fd00::/129", "x/8", "10.0.0.0/08"] {
            assert!(bad.parse::<Network>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_lists_of_the_kernel() {
        let trie = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.0.0\n        /24 link UNICAST\n     |-- 10.1.0.5\n        /32 host LOCAL\n     |-- 10.1.0.255\n        /32 link BROADCAST\n";
        assert_eq!(of_trie(trie), ["10.1.0.5".parse::<IpAddr>().unwrap()]);
        let list =
            "fd000000000000000000000000000005 02 40 00 80     eth0\nfe80000000000000000000000000abcd 02 40 20 80     eth0\n";
        assert_eq!(of_list(list), ["fd00::5".parse::<IpAddr>().unwrap()]);
        let here = addresses().unwrap();
        assert!(here.contains(&"127.0.0.1".parse().unwrap()), "{here:?}");
    }
}
