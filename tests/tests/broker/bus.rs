//! What the bus does when all is well, and whom it believes.

use crate::bed::{Stranger, ask, broker, envelope, host, join, message, next};
use img_storage_daemon::bus::{Delivery, Foreign, ReplyTo};
use img_storage_model::{
    RequestId,
    messages::{Body, Envelope, VERSION},
};
use img_storage_tests::broker::SHARED_USER;
use lapin::BasicProperties;
use std::{
    collections::BTreeSet,
    time::{SystemTime, UNIX_EPOCH},
};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn messages_arrive_in_order_and_those_nobody_takes_come_back() {
    const MANY: u128 = 3000;
    let broker = broker().await;
    let (mut front, mut nas) = (join(&broker, "ant").await, join(&broker, "bat").await);
    let begun = std::time::Instant::now();
    for id in 0..MANY {
        front.post.send(&host("bat"), ask(id));
        if id % 10 == 0 {
            front.post.send(&host("nobody"), ask(id));
        }
    }
    for id in 0..MANY {
        assert_eq!(message(&mut nas).await, envelope("ant", "bat", ask(id)));
    }
    // The broker confirms several at once: these may come in any order.
    let mut back: BTreeSet<u128> = (0..MANY).step_by(10).collect();
    while !back.is_empty() {
        match next(&mut front).await {
            Delivery::Unroutable(Envelope { to, body: Body::Request { id, .. }, .. }) => {
                assert!(to == host("nobody") && back.remove(&id.0.as_u128()), "{id}");
            }
            other => panic!("{other:?}"),
        }
    }
    println!("{} messages a second over TLS, one in ten to nobody", (MANY as f64 / begun.elapsed().as_secs_f64()).round());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_answered_in_its_own_words() {
    let broker = broker().await;
    let mut nas = join(&broker, "cat").await;
    let mut stranger = Stranger::connect(&broker, SHARED_USER).await;
    let reply_to = |number: &str| Some(ReplyTo { queue: stranger.queue.clone(), message: number.to_owned() });
    for (number, body) in ["{\"action\": \"list_zvols\"}", "", "{", "[1]", "null", "{\"v\"", "\u{0}"].iter().enumerate() {
        let number = number.to_string();
        assert!(stranger.send("cat", body.as_bytes(), stranger.properties(&number)).await.unwrap());
        let Delivery::Foreign(foreign) = next(&mut nas).await else { panic!("{body:?} is not handed on") };
        assert_eq!(foreign, Foreign { user: None, reply_to: reply_to(&number), body: body.as_bytes().to_vec() });
    }
    let signed = stranger.properties("8").with_user_id(SHARED_USER.into());
    assert!(stranger.send("cat", b"{}", signed).await.unwrap());
    let Delivery::Foreign(foreign) = next(&mut nas).await else { panic!("not handed on") };
    assert_eq!(foreign.user.as_deref(), Some(SHARED_USER));
    nas.post.answer(&foreign.reply_to.unwrap(), b"{\"status\": \"error\"}".to_vec());
    let answer = stranger.answer().await;
    assert_eq!(answer.data, b"{\"status\": \"error\"}");
    assert_eq!((answer.exchange.as_str(), answer.routing_key.as_str()), ("", stranger.queue.as_str()));
    let said = answer.properties;
    let number = said.message_id().as_ref().unwrap().as_str().parse::<u64>().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(said.timestamp().is_some_and(|at| now.abs_diff(at) < 60));
    // Nothing but what the original puts there.
    let plain = BasicProperties::default()
        .with_app_id("rocks.RabbitMQClient".into())
        .with_delivery_mode(1)
        .with_message_id(number.to_string().into())
        .with_timestamp(said.timestamp().unwrap());
    assert_eq!(said, plain);
    // One who does not wait any more harms nobody.
    nas.post.answer(&ReplyTo { queue: "amq.gen-gone".into(), message: "1".into() }, b"{}".to_vec());
    nas.post.send(&host("cat"), ask(1));
    assert_eq!(message(&mut nas).await, envelope("cat", "cat", ask(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_in_anothers_name() {
    let broker = broker().await;
    let mut node = join(&broker, "cow").await;
    let forger = Stranger::connect(&broker, "dog").await;
    let forged = serde_json::to_vec(&envelope("eel", "cow", ask(1))).unwrap();
    let unsigned = BasicProperties::default().with_type("img-storage".into());
    let signed = unsigned.clone().with_user_id("dog".into());
    assert!(forger.send("cow", &forged, signed.clone()).await.unwrap());
    assert!(forger.send("cow", &forged, unsigned.clone()).await.unwrap());
    // In its own name it is heard: nothing of the above was.
    let honest = envelope("dog", "cow", ask(2));
    assert!(forger.send("cow", &serde_json::to_vec(&honest).unwrap(), signed).await.unwrap());
    assert_eq!(message(&mut node).await, honest);
    // The broker does not let it sign as somebody else.
    let refused = forger.send("cow", &forged, unsigned.with_user_id("eel".into())).await.unwrap_err();
    assert!(refused.to_string().contains("eel"), "{refused}");
    let again = Stranger::connect(&broker, "dog").await;
    let honest = envelope("dog", "cow", ask(3));
    let signed = BasicProperties::default().with_user_id("dog".into());
    assert!(again.send("cow", &serde_json::to_vec(&honest).unwrap(), signed).await.unwrap());
    assert_eq!(message(&mut node).await, honest);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_is_told_so() {
    let broker = broker().await;
    let (mut front, mut nas) = (join(&broker, "elk").await, join(&broker, "emu").await);
    let newer = Stranger::connect(&broker, "elk").await;
    let signed = BasicProperties::default().with_user_id("elk".into());
    let id = RequestId(Uuid::from_u128(77));
    let request = format!(
        r#"{{"v": {}, "from": "elk", "to": "emu", "body": {{"kind": "request", "id": "{id}", "news": 1}}}}"#,
        VERSION + 1
    );
    assert!(newer.send("emu", request.as_bytes(), signed).await.unwrap());
    let answer = message(&mut front).await;
    let Body::Answer { id: answered, answer: Err(fault) } = answer.body else { panic!("{answer:?}") };
    assert_eq!((answered, answer.from), (id, host("emu")));
    assert!(fault.message.contains("version 2") && !fault.next.is_empty(), "{fault}");
    front.post.send(&host("emu"), ask(1));
    assert_eq!(message(&mut nas).await, envelope("elk", "emu", ask(1)));
}
