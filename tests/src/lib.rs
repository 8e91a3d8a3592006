//! What the tests, `cargo xtask demo` and `cargo xtask bench` share: a writer that knows what every block must contain, and
//! the program's processes under control.
//!
//! [`stamp`] says what a block looks like, [`history`] what it may contain at any moment, [`writer`] puts load on a guest's
//! device and checks what it reads; [`service`] starts and kills the program's roles, [`processes`] finds what they started;
//! [`broker`] is a RabbitMQ for them; [`lab`] is three virtual machines for what only a kernel can do.

pub mod broker;
pub mod history;
pub mod lab;
pub mod nas_copy;
pub mod processes;
pub mod service;
pub mod stamp;
pub mod writer;
