//! Certificates for the hosts of one machine or test cluster: a CA, and for each host one pair that serves and one that connects.
//!
//! Written once and never over: a directory that is there is used as it is. The names are those QEMU's TLS objects look for in
//! a credentials directory; a certificate's subject is `O=img-storage,CN=<host>`, which exports check letter by letter.

mod authority;
mod certificate;

pub use authority::{Kind, Made, init, issue};
pub use certificate::{Certificate, show};

use img_storage_model::{Fault, HostName};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use std::{
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// The organisation in every subject.
pub const ORGANISATION: &str = "img-storage";

/// The certificates of a machine, under one directory.
pub struct Pki {
    /// Held while certificates may be made: roles may start at the same time.
    _lock: fs::File,
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Opens the directory's CA, or makes one.
    ///
    /// # Errors
    /// When files cannot be written or what is there is no CA of ours.
    pub fn open(dir: &Path) -> Result<Self, Fault> {
        let key_file = dir.join("ca-key.pem");
        let cert_file = dir.join("ca-cert.pem");
        make_dir(dir)?;
        let lock = fs::File::create(dir.join("lock")).map_err(|e| bad(dir, e))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).map_err(|e| bad(dir, e))?;
        if !cert_file.exists() {
            let key = KeyPair::generate().map_err(|e| bad(dir, e))?;
            let params = ca_params();
            let cert = params.self_signed(&key).map_err(|e| bad(dir, e))?;
            write(&key_file, &key.serialize_pem(), 0o600)?;
            // The certificate comes last: where it is, the key is too.
            write(&cert_file, &cert.pem(), 0o644)?;
        }
        let text = fs::read_to_string(&key_file).map_err(|e| bad(&key_file, e))?;
        let key = KeyPair::from_pem(&text).map_err(|e| bad(&key_file, e))?;
        Ok(Pki { _lock: lock, dir: dir.to_owned(), issuer: Issuer::new(ca_params(), key) })
    }

    /// The credentials directory of a host, made when it is not there.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn host(&self, host: &HostName) -> Result<PathBuf, Fault> {
        let dir = self.dir.join(host.as_str());
        if dir.join("complete").exists() {
            return Ok(dir);
        }
        make_dir(&dir)?;
        fs::copy(self.dir.join("ca-cert.pem"), dir.join("ca-cert.pem")).map_err(|e| bad(&dir, e))?;
        for (role, usage) in [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)] {
            let key = KeyPair::generate().map_err(|e| bad(&dir, e))?;
            let mut params = CertificateParams::new(vec![host.to_string()]).map_err(|e| bad(&dir, e))?;
            params.distinguished_name = subject(host.as_str());
            limit(&mut params);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
            params.extended_key_usages = vec![usage];
            params.use_authority_key_identifier_extension = true;
            let cert = params.signed_by(&key, &self.issuer).map_err(|e| bad(&dir, e))?;
            write(&dir.join(format!("{role}-key.pem")), &key.serialize_pem(), 0o600)?;
            write(&dir.join(format!("{role}-cert.pem")), &cert.pem(), 0o644)?;
        }
        write(&dir.join("complete"), "", 0o644)?;
        Ok(dir)
    }
}

/// A certificate that ends so soon is spoken of, in days.
const SOON: i64 = 30;

/// Whether a directory has what a host is issued: the CA's certificate, and its own to connect with, and they are good today.
///
/// # Errors
/// [`img_storage_model::FaultKind::Invalid`], naming what is missing.
pub fn issued(dir: &Path) -> Result<(), Fault> {
    let missing = ["ca-cert.pem", "client-cert.pem", "client-key.pem"].into_iter().find(|name| !dir.join(name).is_file());
    if let Some(name) = missing {
        return Err(Fault::invalid(format!("the certificates in {} are not complete: there is no {name}", dir.display()))
            .next("nothing was started; issue this host its certificates and copy them there ([pki] dir)"));
    }
    let now = jiff::Timestamp::now();
    for certificate in certificate::of_directory(dir)? {
        let (file, until) = (certificate.file.display(), certificate.until);
        if certificate.has_ended(now) {
            return Err(Fault::invalid(format!("the certificate {file} ended on {until}"))
                .next("nothing was started; issue this host new ones: img-storage pki issue"));
        }
        if certificate.days(now) < SOON {
            tracing::warn!("the certificate {file} ends on {until}: issue this host new ones in time");
        }
    }
    Ok(())
}

fn bad(path: &Path, why: impl std::fmt::Display) -> Fault {
    Fault::failed(format!("certificates in {} cannot be made or used: {why}", path.display()))
}

fn subject(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, ORGANISATION);
    name.push(DnType::CommonName, common_name);
    name
}

fn limit(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2099, 12, 31);
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject("img-storage CA");
    limit(&mut params);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn make_dir(dir: &Path) -> Result<(), Fault> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| bad(dir, e))
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), Fault> {
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path).map_err(|e| bad(path, e))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| bad(path, e))
}
