//! A real RabbitMQ: the bus alone ([`bus`], [`trouble`]), and the program's roles as processes of their own over it ([`roles`],
//! [`phases`]), while the broker is stopped, its connections are cut, and others on it do what they must not.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod bed;
mod bus;
mod cluster_doc;
mod phases;
mod roles;
mod site;
mod trouble;
