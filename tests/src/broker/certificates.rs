//! A CA of the tests' own, and what it issues: good certificates and bad ones.

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

/// As in the certificates that img-storage makes.
const ORGANISATION: &str = "img-storage";

/// A certificate authority with a directory.
pub struct Authority {
    dir: PathBuf,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Until when a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Long enough.
    Later,
    /// It is not any more.
    Yesteryear,
}

impl Authority {
    /// A new one, which keeps what it issues below `dir`.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn new(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&format!("a CA for tests {}", rand::random::<u32>()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2099, 1, 1));
        let certificate = params.self_signed(&key)?.pem();
        Ok(Authority { dir: dir.to_owned(), certificate, issuer: Issuer::new(params, key) })
    }

    /// Issues a host what it needs, into a directory of its own: the file names are those that img-storage looks for.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn issue(&self, host: &str, until: Until) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(format!("{host}-{until:?}"));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("ca-cert.pem"), &self.certificate)?;
        for (role, usage) in [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)] {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(vec![host.to_owned()])?;
            params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
            params.distinguished_name = subject(host);
            let end = if until == Until::Later { 2099 } else { 2021 };
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(end, 1, 1));
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
            params.extended_key_usages = vec![usage];
            params.use_authority_key_identifier_extension = true;
            let certificate = params.signed_by(&key, &self.issuer).with_context(|| format!("issuing {host} a certificate"))?;
            fs::write(dir.join(format!("{role}-key.pem")), key.serialize_pem())?;
            fs::write(dir.join(format!("{role}-cert.pem")), certificate.pem())?;
        }
        Ok(dir)
    }
}

fn subject(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, ORGANISATION);
    name.push(DnType::CommonName, common_name);
    name
}
