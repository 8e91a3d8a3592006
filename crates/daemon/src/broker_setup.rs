//! What a RabbitMQ broker needs so that the hosts of a cluster can use it, each under its own name and with no more rights than it
//! needs: as commands to read and run, or run here.

use img_storage_host::rabbitmq;
use img_storage_model::{Fault, HostName, broker::rights};
use rand::RngExt as _;
use std::{fmt, path::Path};

const CTL: &str = "rabbitmqctl";
const PLUGINS: &str = "rabbitmq-plugins";

/// What is to be set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// The virtual host.
    pub vhost: String,
    /// The hosts, whose names are their users'.
    pub hosts: Vec<HostName>,
}

/// A command, and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    why: String,
    program: &'static str,
    args: Vec<String>,
    /// It makes something of this name, of which there may be one already.
    makes: Option<(&'static str, String)>,
}

impl Setup {
    fn steps(&self, password: &dyn Fn() -> String) -> Vec<Step> {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let mut steps = vec![
            Step {
                why: "hosts say who they are by their certificates".to_owned(),
                program: PLUGINS,
                args: words(&["enable", "rabbitmq_auth_mechanism_ssl"]),
                makes: None,
            },
            Step {
                why: "a place of their own".to_owned(),
                program: CTL,
                args: words(&["add_vhost", &self.vhost]),
                makes: Some(("list_vhosts", self.vhost.clone())),
            },
        ];
        for host in &self.hosts {
            let [configure, write, read] = rights(Some(host));
            let name = host.as_str();
            steps.push(Step {
                why: format!("{name} comes by its certificate: it has no password"),
                program: CTL,
                args: words(&["add_user", name, &password()]),
                makes: Some(("list_users", name.to_owned())),
            });
            let step = |args: &[&str]| Step { why: String::new(), program: CTL, args: words(args), makes: None };
            steps.push(step(&["clear_password", name]));
            steps.push(step(&["set_permissions", "-p", &self.vhost, name, &configure, &write, &read]));
        }
        steps
    }

    /// The commands, for a shell.
    pub fn commands(&self) -> String {
        let mut text = String::new();
        for step in self.steps(&|| PASSWORD.to_owned()) {
            if !step.why.is_empty() {
                text.push_str(&format!("# {}\n", step.why));
            }
            text.push_str(&format!("{}\n", Shell(&step)));
        }
        text
    }

    /// Runs the commands here; gives what was done. What is there already stays, but for rights, which are set again.
    ///
    /// # Errors
    /// What the first one that failed said; what was done before it stays, and is found when this is run again.
    pub async fn run(&self) -> Result<Vec<String>, Fault> {
        let mut done = Vec::new();
        let mut cleared = true;
        for step in self.steps(&password) {
            if let Some((list, name)) = &step.makes {
                let there = call(CTL, &[(*list).to_owned(), "--quiet".to_owned(), "--no-table-headers".to_owned()]).await?;
                cleared = there.lines().any(|line| line.split('\t').next() == Some(name));
                if cleared {
                    done.push(format!("{name} is there already"));
                    continue;
                }
            }
            // A user that somebody made otherwise may have its password for a reason.
            if cleared && step.args.first().is_some_and(|verb| verb == "clear_password") {
                continue;
            }
            call(step.program, &step.args).await?;
            if step.makes.is_none() || step.program == PLUGINS {
                done.push(Shell(&step).to_string());
            } else if let Some((_, name)) = &step.makes {
                done.push(format!("{name} is made"));
            }
        }
        Ok(done)
    }
}

async fn call(program: &str, args: &[String]) -> Result<String, Fault> {
    let said = rabbitmq::run(program, args).await;
    said.map_err(|why| Fault::failed(why.to_string()).next("run it on the broker's host, as root, while the broker runs"))
}

/// The lines that `rabbitmq.conf` needs; `dir` has what was issued for the broker.
pub fn conf(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "# By img-storage broker-setup.\n\
         listeners.ssl.default = 5671\n\
         ssl_options.cacertfile = {dir}/ca-cert.pem\n\
         ssl_options.certfile = {dir}/server-cert.pem\n\
         ssl_options.keyfile = {dir}/server-key.pem\n\
         ssl_options.verify = verify_peer\n\
         ssl_options.fail_if_no_peer_cert = true\n\
         ssl_options.versions.1 = tlsv1.3\n\
         ssl_options.versions.2 = tlsv1.2\n\
         # A host's user is the common name of its certificate.\n\
         auth_mechanisms.1 = EXTERNAL\n\
         ssl_cert_login_from = common_name\n"
    )
}

/// Only until it is cleared, and no mechanism takes it; all the same nobody should guess it.
fn password() -> String {
    rand::rng().random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Stands for one in what is printed.
const PASSWORD: &str = "$(head -c 32 /dev/urandom | base64 -w 0)";

struct Shell<'a>(&'a Step);

impl fmt::Display for Shell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.program)?;
        for arg in &self.0.args {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            if arg == PASSWORD {
                write!(f, " \"{arg}\"")?;
            } else if !arg.is_empty() && arg.chars().all(plain) {
                write!(f, " {arg}")?;
            } else {
                write!(f, " '{}'", arg.replace('\'', r"'\''"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_given_to_a_shell() {
        let setup = Setup { vhost: "img-storage".to_owned(), hosts: vec!["nas-0-0".parse().unwrap()] };
        let expected = "# hosts say who they are by their certificates\n\
            rabbitmq-plugins enable rabbitmq_auth_mechanism_ssl\n\
            # a place of their own\n\
            rabbitmqctl add_vhost img-storage\n\
            # nas-0-0 comes by its certificate: it has no password\n\
            rabbitmqctl add_user nas-0-0 \"$(head -c 32 /dev/urandom | base64 -w 0)\"\n\
            rabbitmqctl clear_password nas-0-0\n\
            rabbitmqctl set_permissions -p img-storage nas-0-0 '^(amq\\.gen-.*|rocks\\.vm-manage|img-storage\\.name\\.nas-0-0)$' \
            '^(amq\\.gen-.*|rocks\\.vm-manage|amq\\.default)$' '^(amq\\.gen-.*|rocks\\.vm-manage)$'\n";
        assert_eq!(setup.commands(), expected);
        let odd = Setup { vhost: "a'b $(x)".to_owned(), hosts: Vec::new() };
        assert!(odd.commands().contains(r"add_vhost 'a'\''b $(x)'"));
    }
}
