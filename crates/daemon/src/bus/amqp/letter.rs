//! What a message looks like on the broker, and whom it is taken from.

use crate::bus::{Foreign, ReplyTo};
use img_storage_model::{
    Fault, HostName, RequestId,
    messages::{Body, Envelope, VERSION},
};
use lapin::BasicProperties;
use serde::Deserialize;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// The original's name for itself; its front end and ours carry it alike.
const APP: &str = "rocks.RabbitMQClient";
/// The type of our own messages; the original's requests have an empty one.
const OURS: &str = "img-storage";
/// The type of the message a daemon sends itself to see that it is heard.
const PROBE: &str = "img-storage.probe";
/// What nobody took for so long, in milliseconds, is not worth taking any more: everything that matters is sent again.
const OLD: &str = "60000";

/// Writes the properties of what a daemon sends.
pub(super) struct Writer {
    name: HostName,
    /// Whom the broker knows us as; it refuses any other.
    user: String,
    number: AtomicU64,
}

impl Writer {
    pub(super) fn new(name: HostName, user: String) -> Self {
        Writer { name, user, number: AtomicU64::new(rand::random()) }
    }

    fn common(&self) -> BasicProperties {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        BasicProperties::default()
            .with_app_id(APP.into())
            .with_message_id(number.to_string().into())
            .with_timestamp(now)
            .with_delivery_mode(1)
    }

    pub(super) fn ours(&self) -> BasicProperties {
        self.signed(OURS).with_content_type("application/json".into()).with_expiration(OLD.into())
    }

    pub(super) fn probe(&self) -> BasicProperties {
        self.signed(PROBE).with_expiration("5000".into())
    }

    fn signed(&self, kind: &str) -> BasicProperties {
        self.common().with_type(kind.into()).with_reply_to(self.name.as_str().into()).with_user_id(self.user.as_str().into())
    }

    /// As the original answers its front end.
    pub(super) fn answer(&self) -> BasicProperties {
        self.common()
    }
}

/// What a delivery turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Letter {
    /// One of ours, from whom it says.
    Ours(Envelope),
    /// One in other words.
    Foreign(Foreign),
    /// Our own probe.
    Probe,
    /// One of ours that is not to be believed or understood; who asked something is told so.
    Refused { why: String, answer: Option<(HostName, Body)> },
}

/// As much of one of our messages as every version of it has.
#[derive(Deserialize)]
struct Header {
    v: serde_json::Value,
    from: Option<HostName>,
    body: Option<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    kind: Option<String>,
    id: Option<RequestId>,
}

/// Takes a delivery apart. Where the broker vouches for senders (`vouched`), nobody speaks in another's name.
pub(super) fn read(me: &HostName, vouched: bool, properties: &BasicProperties, data: Vec<u8>) -> Letter {
    let user = properties.user_id().as_ref().map(ToString::to_string);
    if properties.kind().as_ref().is_some_and(|kind| kind.as_str() == PROBE) {
        return Letter::Probe;
    }
    let refused = |why: String| Letter::Refused { why, answer: None };
    let signed = |from: &HostName| !vouched || user.as_deref() == Some(from.as_str());
    let forged = |from: &HostName| {
        let by = user.as_deref().map_or_else(|| "somebody who does not say who".to_owned(), |user| format!("the user {user}"));
        refused(format!("a message in the name of {from} was sent by {by}"))
    };
    match serde_json::from_slice::<Envelope>(&data) {
        Ok(envelope) if envelope.v == VERSION => {
            return if !signed(&envelope.from) {
                forged(&envelope.from)
            } else if envelope.to != *me {
                refused(format!("a message from {} is for {}", envelope.from, envelope.to))
            } else {
                Letter::Ours(envelope)
            };
        }
        _ => {}
    }
    let Ok(Header { v, from, body }) = serde_json::from_slice(&data) else {
        let reply_to = properties.reply_to().as_ref().map(|queue| ReplyTo {
            queue: queue.to_string(),
            message: properties.message_id().as_ref().map_or_else(String::new, ToString::to_string),
        });
        return Letter::Foreign(Foreign { user, reply_to, body: data });
    };
    match from {
        Some(from) if !signed(&from) => forged(&from),
        from => {
            let who = from.as_ref().map_or("somebody", |f| f.as_str());
            let why = if v == VERSION {
                format!("{who} sent a message that cannot be understood")
            } else {
                format!("{who} speaks version {v} of the messages, {me} speaks version {VERSION}")
            };
            let asked = body.filter(|b| b.kind.as_deref() == Some("request")).and_then(|b| b.id);
            let answer = from.zip(asked).map(|(from, id)| {
                let fault = Fault::refused(why.clone())
                    .next(format!("nothing was changed; run the same version of img-storage on {from} and {me}"));
                (from, Body::Answer { id, answer: Err(fault) })
            });
            Letter::Refused { why, answer }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use img_storage_model::api::Request;
    use uuid::Uuid;

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    fn from(user: &str) -> BasicProperties {
        Writer::new(host("whoever"), user.to_owned()).ours()
    }

    fn request(v: u32) -> Envelope {
        let body = Body::Request { id: RequestId(Uuid::from_u128(7)), request: Box::new(Request::Find { selector: None }) };
        Envelope { v, from: host("front"), to: host("nas"), body }
    }

    fn bytes(message: &impl serde::Serialize) -> Vec<u8> {
        serde_json::to_vec(message).unwrap()
    }

    #[test]
    fn a_message_is_taken_from_its_sender_only() {
        let message = request(VERSION);
        let read = |user: Option<&str>, vouched| {
            let properties = user.map_or_else(BasicProperties::default, from);
            super::read(&host("nas"), vouched, &properties, bytes(&message))
        };
        assert_eq!(read(Some("front"), true), Letter::Ours(message.clone()));
        assert!(matches!(read(Some("compute"), true), Letter::Refused { why, answer: None } if why.contains("compute")));
        assert!(matches!(read(None, true), Letter::Refused { answer: None, .. }));
        assert_eq!(read(Some("img-storage"), false), Letter::Ours(message.clone()));
        let elsewhere = super::read(&host("other"), true, &from("front"), bytes(&message));
        assert!(matches!(elsewhere, Letter::Refused { answer: None, .. }));
    }

    #[test]
    fn who_asks_in_another_version_is_answered() {
        let read = super::read(&host("nas"), true, &from("front"), bytes(&request(VERSION + 1)));
        let Letter::Refused { why, answer: Some((to, Body::Answer { answer: Err(fault), .. })) } = read else {
            panic!("{read:?}")
        };
        assert!(why.contains("version 2") && fault.message.contains("version 1") && to == host("front"));
        let forged = super::read(&host("nas"), true, &from("compute"), bytes(&request(VERSION + 1)));
        assert!(matches!(forged, Letter::Refused { answer: None, .. }));
        let garbled = super::read(&host("nas"), true, &from("front"), br#"{"v":1,"from":"front","to":"nas","body":{}}"#.to_vec());
        assert!(matches!(garbled, Letter::Refused { answer: None, .. }), "{garbled:?}");
    }

    #[test]
    fn everything_else_is_handed_on_as_it_came() {
        let properties =
            BasicProperties::default().with_reply_to("amq.gen-x".into()).with_message_id("18446744073709551615".into());
        for body in
            ["", "{", "[]", "7", "null", r#"{"action":"list_zvols"}"#, r#"{"action":"map_zvol","zvol":"v"}"#, "\u{0}\u{ff}"]
        {
            let read = read(&host("nas"), true, &properties, body.into());
            let reply_to = ReplyTo { queue: "amq.gen-x".into(), message: "18446744073709551615".into() };
            assert_eq!(read, Letter::Foreign(Foreign { user: None, reply_to: Some(reply_to), body: body.into() }));
        }
        let nowhere = read(&host("nas"), true, &BasicProperties::default(), b"{}".to_vec());
        assert!(matches!(nowhere, Letter::Foreign(Foreign { reply_to: None, .. })));
    }

    #[test]
    fn messages_are_numbered_one_after_the_other() {
        let writer = Writer { name: host("nas"), user: "nas".into(), number: AtomicU64::new(u64::MAX) };
        let numbers = [writer.ours(), writer.answer(), writer.probe()].map(|p| p.message_id().clone().unwrap().to_string());
        assert_eq!(numbers, ["18446744073709551615", "0", "1"]);
    }
}
