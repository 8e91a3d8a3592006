//! The tests' RabbitMQ serves the guests: the program's roles find each other over it.

use anyhow::{Context as _, ensure};
use img_storage_tests::{
    broker::{Broker, Until},
    lab::Lab,
};
use std::{net::Ipv4Addr, path::Path, time::Duration};

/// A broker in the lab's network: a guest reaches it with TLS, and knows it by its certificate; nobody outside reaches it.
pub async fn the_broker_serves_the_guests(lab: &Lab) -> anyhow::Result<()> {
    let broker = Broker::start_in(lab.broker_place(), &["nas", "node1", "node2"]).await?;
    for guest in lab.guests() {
        let pki = broker.authority().issue(guest.name(), Until::Later)?;
        guest.check("mkdir -p /run/lab/pki").await?;
        for file in ["ca-cert.pem", "client-cert.pem", "client-key.pem"] {
            guest.put(&pki.join(file), Path::new("/run/lab/pki").join(file).to_str().context("a path")?).await?;
        }
        let tls = format!(
            "openssl s_client -connect host:{} -verify_return_error -verify_hostname host -CAfile /run/lab/pki/ca-cert.pem \
             -cert /run/lab/pki/client-cert.pem -key /run/lab/pki/client-key.pem < /dev/null",
            broker.port()
        );
        let said = guest.check(&tls).await?;
        ensure!(said.contains("Verify return code: 0"), "{} does not know the broker: {said}", guest.name());
    }
    let outside = std::net::TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, broker.port()).into(), Duration::from_secs(1));
    ensure!(outside.is_err(), "the broker is reached from outside the lab's network");
    ensure!(broker.ctl(&["list_vhosts"]).await?.contains("img-storage"), "rabbitmqctl does not reach the broker");
    Ok(())
}
