//! The built command against the real API server with a front end made up here.

mod api;
mod attributes;
mod cluster;
mod doctor;
mod output;
mod rocks;
mod stand_in;
mod support;
mod usage;
mod verbs;
