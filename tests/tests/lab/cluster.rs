//! Scenarios with a whole cluster: a front end and a NAS with a ZFS pool on `nas`, a node each on `node1` and `node2`.

mod copies;
mod doctor;
mod fence;
mod hands;
mod ledger;
mod life;
mod phases;
mod planes;
mod power;
mod reboot;

pub use copies::copies_are_cut_and_cancelled;
pub use doctor::the_doctor_names_the_culprit;
pub use fence::an_old_session_is_locked_out;
pub use hands::hands_meddle;
pub use ledger::an_old_ledger_destroys_nothing;
pub use life::a_volume_lives;
pub use phases::every_phase_has_its_accident;
pub use planes::both_planes_and_minutes_without_network;
pub use power::machines_lose_power;
pub use reboot::a_nas_is_rebooted_under_its_guests;
