//! A CA for a cluster, and what it issues: once, for a while, and never over anything that is there.

use super::{Certificate, bad, ca_params, make_dir, subject};
use img_storage_model::{Fault, HostName};
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};
use std::{
    fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a CA is good: ten years.
const CA_DAYS: i64 = 3652;
/// How long what it issues is good: two years.
const DAYS: i64 = 730;
/// Clocks may differ so much.
const EARLIER: SignedDuration = SignedDuration::from_hours(1);
const KEY: &str = "ca-key.pem";
const CERTIFICATE: &str = "ca-cert.pem";

/// What a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Connects to NASes.
    Node,
    /// Serves volumes, and connects to the broker.
    Nas,
    /// Connects to the broker, and to NASes for images.
    Frontend,
    /// The RabbitMQ server.
    Broker,
}

impl Kind {
    /// The pairs it needs: to serve, to connect.
    fn pairs(self) -> &'static [(&'static str, ExtendedKeyUsagePurpose)] {
        const SERVES: (&str, ExtendedKeyUsagePurpose) = ("server", ExtendedKeyUsagePurpose::ServerAuth);
        const CONNECTS: (&str, ExtendedKeyUsagePurpose) = ("client", ExtendedKeyUsagePurpose::ClientAuth);
        match self {
            Kind::Nas => &[SERVES, CONNECTS],
            Kind::Node | Kind::Frontend => &[CONNECTS],
            Kind::Broker => &[SERVES],
        }
    }
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Where it is.
    pub dir: PathBuf,
    /// Until when it is good.
    pub until: Timestamp,
}

/// Makes a CA in a directory.
///
/// # Errors
/// [`img_storage_model::FaultKind::Refused`] where there is one, or a part of one.
pub fn init(dir: &Path) -> Result<Made, Fault> {
    make_dir(dir)?;
    for file in [KEY, CERTIFICATE] {
        refuse_existing(&dir.join(file))?;
    }
    let now = Timestamp::now();
    let until = later(now, CA_DAYS)?;
    let key = KeyPair::generate().map_err(|e| bad(dir, e))?;
    let mut params = ca_params();
    limit(&mut params, now, until);
    let cert = params.self_signed(&key).map_err(|e| bad(dir, e))?;
    // The certificate comes last: where it is, the key is too.
    write_new(&dir.join(KEY), &key.serialize_pem(), 0o600)?;
    write_new(&dir.join(CERTIFICATE), &cert.pem(), 0o644)?;
    Ok(Made { dir: dir.to_owned(), until })
}

/// Issues a host what it needs, in a directory of its name beside the CA. `addresses` are other names and addresses by which it is
/// connected to.
///
/// # Errors
/// [`img_storage_model::FaultKind::Refused`] where there is something of that name; [`img_storage_model::FaultKind::Failed`] when the
/// CA cannot be used. Nothing is left then.
pub fn issue(dir: &Path, kind: Kind, host: &HostName, addresses: &[String]) -> Result<Made, Fault> {
    let now = Timestamp::now();
    let (issuer, ca) = open(dir)?;
    if ca.has_ended(now) {
        return Err(Fault::refused(format!("the CA in {} ended on {}", dir.display(), ca.until))
            .next("make a new one elsewhere: img-storage pki init, and issue every host from it"));
    }
    let target = dir.join(host.as_str());
    refuse_existing(&target)?;
    let until = later(now, DAYS)?.min(ca.until);
    // Made aside and moved into its place as a whole: a half is never there.
    let aside = dir.join(format!(".{host}.new"));
    if let Err(e) = fs::remove_dir_all(&aside)
        && e.kind() != ErrorKind::NotFound
    {
        return Err(bad(&aside, e));
    }
    fs::DirBuilder::new().mode(0o700).create(&aside).map_err(|e| bad(&aside, e))?;
    let made = fill(&aside, dir, kind, host, addresses, &issuer, (now, until))
        .and_then(|()| refuse_existing(&target))
        .and_then(|()| fs::rename(&aside, &target).map_err(|e| bad(&target, e)));
    if made.is_err() {
        // What is left of it is in nobody's way.
        let _ = fs::remove_dir_all(&aside);
    }
    made.map(|()| Made { dir: target, until })
}

fn fill(
    aside: &Path,
    dir: &Path,
    kind: Kind,
    host: &HostName,
    addresses: &[String],
    issuer: &Issuer<'static, KeyPair>,
    (now, until): (Timestamp, Timestamp),
) -> Result<(), Fault> {
    let mut names = vec![host.to_string()];
    names.extend(addresses.iter().filter(|a| **a != host.as_str()).cloned());
    for (role, usage) in kind.pairs() {
        let key = KeyPair::generate().map_err(|e| bad(aside, e))?;
        let mut params = CertificateParams::new(names.clone()).map_err(|e| {
            Fault::invalid(format!("a certificate for {} cannot be made: {e}", names.join(", ")))
                .next("give names and addresses as others connect to them")
        })?;
        params.distinguished_name = subject(host.as_str());
        limit(&mut params, now, until);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![usage.clone()];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, issuer).map_err(|e| bad(aside, e))?;
        write_new(&aside.join(format!("{role}-key.pem")), &key.serialize_pem(), 0o600)?;
        write_new(&aside.join(format!("{role}-cert.pem")), &cert.pem(), 0o644)?;
    }
    let ca = fs::read_to_string(dir.join(CERTIFICATE)).map_err(|e| bad(dir, e))?;
    write_new(&aside.join(CERTIFICATE), &ca, 0o644)
}

/// The CA of a directory.
fn open(dir: &Path) -> Result<(Issuer<'static, KeyPair>, Certificate), Fault> {
    let (key_file, cert_file) = (dir.join(KEY), dir.join(CERTIFICATE));
    if !cert_file.exists() {
        return Err(Fault::not_found(format!("there is no CA in {}", dir.display()))
            .next(format!("make one: img-storage pki init {}", dir.display())));
    }
    let ca = Certificate::read(&cert_file)?;
    let text = fs::read_to_string(&key_file).map_err(|e| bad(&key_file, e))?;
    let key = KeyPair::from_pem(&text).map_err(|e| bad(&key_file, e))?;
    let der = {
        use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};
        CertificateDer::from_pem_file(&cert_file).map_err(|e| bad(&cert_file, e))?
    };
    // What another key signs nobody would believe.
    if !der.windows(key.public_key_raw().len()).any(|window| window == key.public_key_raw()) {
        return Err(Fault::failed(format!("{} is not the key of {}", key_file.display(), cert_file.display()))
            .next("restore both from one backup"));
    }
    Ok((Issuer::new(ca_params(), key), ca))
}

fn later(now: Timestamp, days: i64) -> Result<Timestamp, Fault> {
    now.checked_add(SignedDuration::from_hours(days * 24)).map_err(|e| Fault::failed(format!("the clock is wrong: {e}")))
}

fn limit(params: &mut CertificateParams, now: Timestamp, until: Timestamp) {
    let time = |at: Timestamp| date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(at.as_second()).unwrap_or(0));
    params.not_before = time(now - EARLIER);
    params.not_after = time(until);
}

fn refuse_existing(path: &Path) -> Result<(), Fault> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(bad(path, e)),
        Ok(_) => Err(Fault::refused(format!("{} is there already; nothing is written over", path.display()))
            .next("to replace it, move it away first")),
    }
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Fault> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|e| bad(path, e))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| bad(path, e))
}

#[cfg(test)]
mod tests {
    use super::super::show;
    use super::*;
    use img_storage_model::FaultKind;
    use std::os::unix::fs::PermissionsExt as _;

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    #[test]
    fn each_gets_what_it_needs_and_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca");
        let made = init(&ca).unwrap();
        assert!(made.until.duration_since(Timestamp::now()) > SignedDuration::from_hours(24 * 3650));
        for (kind, name, files) in [
            (
                Kind::Nas,
                "nas-0-0",
                &["ca-cert.pem", "client-cert.pem", "client-key.pem", "server-cert.pem", "server-key.pem"][..],
            ),
            (Kind::Node, "compute-0-0", &["ca-cert.pem", "client-cert.pem", "client-key.pem"]),
            (Kind::Frontend, "frontend", &["ca-cert.pem", "client-cert.pem", "client-key.pem"]),
            (Kind::Broker, "mq", &["ca-cert.pem", "server-cert.pem", "server-key.pem"]),
        ] {
            let made = issue(&ca, kind, &host(name), &["10.0.0.1".to_owned(), "mq.example.org".to_owned()]).unwrap();
            let mut found: Vec<String> =
                fs::read_dir(&made.dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            found.sort();
            assert_eq!(found, files, "{name}");
            for file in found.iter().filter(|f| f.ends_with("key.pem")) {
                assert_eq!(fs::metadata(made.dir.join(file)).unwrap().permissions().mode() & 0o777, 0o600);
            }
            let left = made.until.duration_since(Timestamp::now());
            assert!(left > SignedDuration::from_hours(24 * 729) && left < SignedDuration::from_hours(24 * 731));
        }
        let all = show(&ca).unwrap();
        let named: Vec<(&str, bool)> = all.iter().map(|c| (c.name.as_str(), c.has_ended(Timestamp::now()))).collect();
        assert_eq!(
            named,
            [
                ("img-storage CA", false),
                ("compute-0-0", false),
                ("frontend", false),
                ("mq", false),
                ("nas-0-0", false),
                ("nas-0-0", false)
            ]
        );
        super::super::issued(&ca.join("compute-0-0")).unwrap();
    }

    #[test]
    fn nothing_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        init(dir.path()).unwrap();
        issue(dir.path(), Kind::Node, &host("n"), &[]).unwrap();
        let before: Vec<Vec<u8>> = [KEY, CERTIFICATE, "n/client-key.pem"].map(|f| fs::read(dir.path().join(f)).unwrap()).into();
        assert_eq!(init(dir.path()).unwrap_err().kind, FaultKind::Refused);
        assert_eq!(issue(dir.path(), Kind::Nas, &host("n"), &[]).unwrap_err().kind, FaultKind::Refused);
        assert!(issue(dir.path(), Kind::Nas, &host("m"), &["näme".to_owned()]).is_err());
        let after: Vec<Vec<u8>> = [KEY, CERTIFICATE, "n/client-key.pem"].map(|f| fs::read(dir.path().join(f)).unwrap()).into();
        assert_eq!(before, after);
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 3, "{left:?}");
        fs::remove_file(dir.path().join(CERTIFICATE)).unwrap();
        assert_eq!(init(dir.path()).unwrap_err().kind, FaultKind::Refused, "a key alone is not written over either");
    }

    #[test]
    fn another_key_and_no_ca_are_noticed() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(issue(one.path(), Kind::Node, &host("n"), &[]).unwrap_err().kind, FaultKind::NotFound);
        init(one.path()).unwrap();
        init(two.path()).unwrap();
        fs::copy(two.path().join(KEY), one.path().join(KEY)).unwrap();
        let fault = issue(one.path(), Kind::Node, &host("n"), &[]).unwrap_err();
        assert!(fault.message.contains("is not the key of"), "{fault}");
    }
}
