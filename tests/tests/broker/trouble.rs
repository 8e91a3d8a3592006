//! What the bus does when something is wrong: with the connection, the broker, or who one is.

use crate::bed::{HEARTBEAT, SOON, ask, broker, envelope, host, join, message, next, settings, tls, try_join};
use img_storage_daemon::bus::{
    Delivery, Member,
    amqp::{Login, Settings},
};
use img_storage_model::FaultKind;
use img_storage_tests::broker::{Authority, Broker, PASSWORD, Proxy, SHARED_USER, Until};
use std::{
    fs,
    time::{Duration, Instant},
};

/// Waits until it is connected again; gives what was sent in vain.
async fn back(member: &mut Member) -> usize {
    let mut unsent = 0;
    loop {
        match next(member).await {
            Delivery::Connected => return unsent,
            Delivery::Unsent { .. } => unsent += 1,
            Delivery::Unroutable(_) | Delivery::Message(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_had_once() {
    let broker = broker().await;
    let first = join(&broker, "fly").await;
    let begun = Instant::now();
    let fault = try_join(settings(&broker, "fly", broker.port()), "fly").await.err().expect("refused");
    assert_eq!(fault.kind, FaultKind::Refused);
    assert!(fault.message.contains("fly") && fault.next.contains("--name"), "{fault}");
    assert!(begun.elapsed() >= 2 * HEARTBEAT, "a dead connection of its own could have been the reason");
    // The first one was not disturbed, and makes room when it goes.
    let mut other = join(&broker, "fox").await;
    first.post.send(&host("fox"), ask(1));
    assert_eq!(message(&mut other).await, envelope("fly", "fox", ask(1)));
    drop(first);
    join(&broker, "fly").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_is_told_why() {
    let broker = broker().await;
    let dir = tempfile::tempdir().unwrap();
    let stranger = Authority::new(&dir.path().join("pki")).unwrap();
    let good = settings(&broker, "gnu", broker.port());
    let by = |dir: &std::path::Path| Settings { tls: Some(tls(dir)), ..good.clone() };
    // The stranger's certificate, and the right CA to trust the broker by.
    let theirs = stranger.issue("gnu", Until::Later).unwrap();
    let ours = broker.authority().issue("gnu", Until::Later).unwrap();
    let untrusting = by(&theirs);
    fs::copy(ours.join("ca-cert.pem"), theirs.join("our-ca.pem")).unwrap();
    let mut untrusted = by(&theirs);
    untrusted.tls.as_mut().unwrap().ca = theirs.join("our-ca.pem");
    let expired = by(&broker.authority().issue("gnu", Until::Yesteryear).unwrap());
    let unknown = by(&broker.authority().issue("wolf", Until::Later).unwrap());
    let another = by(&broker.authority().issue("hen", Until::Later).unwrap());
    let password = dir.path().join("password");
    fs::write(&password, "a wrong one\n").unwrap();
    let plain = Settings { login: Login::Plain { user: SHARED_USER.into(), password_file: password }, ..good.clone() };
    let vhost = Settings { vhost: "elsewhere".into(), ..good.clone() };
    let cases = [
        ("the broker's certificate is from another CA", untrusting, "UnknownIssuer"),
        ("ours is from another CA", untrusted, "refuses this host's certificate"),
        ("ours has expired", expired, "CertificateExpired"),
        ("the broker does not know us", unknown, "EXTERNAL"),
        ("the certificate is another host's", another, "hen"),
        ("a wrong password", plain, "PLAIN"),
        ("a virtual host that is not there", vhost, "elsewhere"),
    ];
    for (what, settings, named) in cases {
        let fault = try_join(settings, "gnu").await.err().unwrap_or_else(|| panic!("{what}: not refused"));
        assert_eq!(fault.kind, FaultKind::Refused, "{what}: {fault}");
        assert!(fault.message.contains(named) && fault.message.contains("gnu") && !fault.next.is_empty(), "{what}: {fault}");
    }
    let member = try_join(good, "gnu").await.unwrap().member;
    drop(member);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_user_will_do_where_nobody_vouches() {
    let broker = broker().await;
    let dir = tempfile::tempdir().unwrap();
    let password_file = dir.path().join("password");
    fs::write(&password_file, format!("{PASSWORD}\n")).unwrap();
    let login = Login::Plain { user: SHARED_USER.into(), password_file };
    let mut encrypted = settings(&broker, "hen", broker.port());
    encrypted.login = login.clone();
    let mut bare = Settings { tls: None, login, ..encrypted.clone() };
    bare.brokers[0].port = broker.plain_port();
    let mut one = try_join(encrypted, "hosta").await.unwrap().member;
    let mut other = try_join(bare, "hostb").await.unwrap().member;
    assert!(matches!((next(&mut one).await, next(&mut other).await), (Delivery::Connected, Delivery::Connected)));
    one.post.send(&host("hostb"), ask(1));
    assert_eq!(message(&mut other).await, envelope("hosta", "hostb", ask(1)));
    other.post.send(&host("hosta"), ask(2));
    assert_eq!(message(&mut one).await, envelope("hostb", "hosta", ask(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_made_again() {
    let broker = broker().await;
    let proxy = Proxy::to(broker.port()).await.unwrap();
    let mut nas = join(&broker, "jay").await;
    let mut node = try_join(settings(&broker, "kid", proxy.port()), "kid").await.unwrap().member;
    assert!(matches!(next(&mut node).await, Delivery::Connected));
    for round in 0..5u128 {
        for id in 0..50 {
            node.post.send(&host("jay"), ask(1000 * round + id));
            nas.post.send(&host("kid"), ask(1000 * round + id));
        }
        if round % 2 == 0 {
            tokio::time::sleep(Duration::from_millis(u64::try_from(round).unwrap())).await;
        }
        proxy.cut();
        back(&mut node).await;
        // What arrived in between is part of what was sent, in order, and what is sent now arrives.
        let mark = ask(1000 * round + 999);
        node.post.send(&host("jay"), mark.clone());
        let mut last = None;
        loop {
            match next(&mut nas).await {
                Delivery::Message(message) if message.body == mark => break,
                Delivery::Message(message) => {
                    let img_storage_model::messages::Body::Request { id, .. } = message.body else { panic!("{message:?}") };
                    assert!(last.replace(id).is_none_or(|last| last < id), "{id} came late");
                }
                Delivery::Unroutable(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    // A broker that nobody can get to: what is sent comes back at once.
    proxy.close();
    let begun = Instant::now();
    loop {
        node.post.send(&host("jay"), ask(1));
        // What was on its way when the connection broke is lost.
        match tokio::time::timeout(Duration::from_millis(20), next(&mut node)).await {
            Ok(Delivery::Unsent { message, why }) => {
                assert_eq!((message, why.contains("broker")), (envelope("kid", "jay", ask(1)), true));
                break;
            }
            Ok(Delivery::Message(_) | Delivery::Unroutable(_)) | Err(_) => {}
            other => panic!("{other:?}"),
        }
        assert!(begun.elapsed() < SOON, "it does not notice");
    }
    proxy.flow();
    back(&mut node).await;
    // One that takes bytes and gives none is given up after two heartbeats, and the name is had again.
    proxy.stall();
    tokio::time::sleep(4 * HEARTBEAT).await;
    proxy.flow();
    back(&mut node).await;
    node.post.send(&host("kid"), ask(2));
    loop {
        match next(&mut node).await {
            Delivery::Message(message) if message == envelope("kid", "kid", ask(2)) => break,
            Delivery::Message(_) | Delivery::Connected | Delivery::Unsent { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_deleted_is_made_again() {
    let broker = broker().await;
    let mut nas = join(&broker, "owl").await;
    delete_queues_of(&broker, "owl").await;
    back(&mut nas).await;
    nas.post.send(&host("owl"), ask(1));
    assert_eq!(message(&mut nas).await, envelope("owl", "owl", ask(1)));
}

/// Deletes the queues that get what is sent to a host, whoever has them.
pub async fn delete_queues_of(broker: &Broker, name: &str) {
    let code = format!(
        "X = rabbit_misc:r(<<\"img-storage\">>, exchange, <<\"rocks.vm-manage\">>), \
         [rabbit_amqqueue:with(Q, fun(A) -> rabbit_amqqueue:delete(A, false, false, <<\"test\">>) end) \
          || {{binding, _, K, Q, _}} <- rabbit_binding:list_for_source(X), K == <<\"{name}\">>]."
    );
    let said = broker.ctl(&["eval", &code]).await.unwrap();
    assert!(said.contains("ok"), "nothing was deleted: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_comes_late_is_used() {
    let broker = broker().await;
    let proxy = Proxy::to(broker.port()).await.unwrap();
    proxy.close();
    let mut late = try_join(settings(&broker, "pig", proxy.port()), "pig").await.unwrap();
    late.member.post.send(&host("ram"), ask(1));
    assert!(matches!(next(&mut late.member).await, Delivery::Unsent { .. }));
    proxy.flow();
    back(&mut late.member).await;
    // And one that stays away for too long ends the daemon.
    let impatient = Settings { quit_without_broker: Some(Duration::from_secs(1)), ..settings(&broker, "ram", proxy.port()) };
    let quitting = try_join(impatient, "ram").await.unwrap();
    proxy.close();
    let fault = tokio::time::timeout(SOON, quitting.over).await.expect("an end").unwrap();
    assert_eq!(fault.kind, FaultKind::Unreachable);
    assert!(fault.message.contains("ram") && !fault.next.is_empty(), "{fault}");
}
