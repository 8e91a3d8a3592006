//! `openapi`: the API's description; no front end is asked.

use crate::{
    args::Global,
    output::{Out, Output},
    stop::Done,
};
use clap::Args;
use img_storage_model::Fault;

/// Prints the API's description (OpenAPI 3.1), as JSON or with -o yaml
#[derive(Debug, Args)]
pub struct Openapi {}

impl Openapi {
    pub fn run(self, global: &Global) -> Done {
        if global.output == Output::Csv {
            return Err(Fault::invalid("the description has no CSV form").next("use -o json or -o yaml").into());
        }
        Out::new(global.output).value(&img_storage_daemon::frontend::http::openapi(), None)
    }
}
