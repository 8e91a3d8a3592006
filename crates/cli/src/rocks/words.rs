//! A command line as Rocks understands it: words of the command, arguments, and parameters as name=value, which may stand for
//! arguments.

use img_storage_model::Fault;
use std::{collections::BTreeMap, fmt::Display, str::FromStr};

/// Stands where the usage is said.
pub const USAGE: &str = "usage";

/// What a command was given.
#[derive(Debug, Default)]
pub struct Words {
    args: Vec<String>,
    params: BTreeMap<String, String>,
}

/// A name of a parameter, and its value.
fn parameter(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let well_formed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '+');
    (!name.is_empty() && name.chars().all(well_formed)).then_some((name, value))
}

impl Words {
    /// Which command is meant, how it is used, and what it was given.
    pub fn of<'a>(words: &[String], commands: &'a [(&'a str, &'a str)]) -> Result<(&'a str, &'a str, Self), Fault> {
        // The command's words may come as one.
        let (first, rest) = words.split_first().map_or((String::new(), &[][..]), |(first, rest)| (first.clone(), rest));
        let split: Vec<&str> = first.split_whitespace().chain(rest.iter().map(String::as_str)).collect();
        let fits = |command: &str| {
            let named: Vec<&str> = command.split(' ').collect();
            split.get(..named.len()).is_some_and(|begin| begin == named)
        };
        let Some((command, usage)) = commands.iter().find(|(command, _)| fits(command)) else {
            let begins: Vec<&str> = commands
                .iter()
                .map(|(command, _)| *command)
                .filter(|c| split.first().is_some_and(|w| c.starts_with(w)))
                .collect();
            let known = if begins.is_empty() { commands.iter().map(|(command, _)| *command).collect() } else { begins };
            return Err(Fault::invalid(format!("invalid rocks command {:?}", split.join(" ")))
                .next(format!("commands are: {}", known.join(", "))));
        };
        let mut given = Words::default();
        for word in &split[command.split(' ').count()..] {
            match parameter(word) {
                Some((name, value)) => drop(given.params.insert(name.to_owned(), value.to_owned())),
                None => given.args.push((*word).to_owned()),
            }
        }
        Ok((command, usage, given))
    }

    /// Whether only the usage is asked for.
    pub fn wants_help(&self) -> bool {
        self.args.first().is_some_and(|word| word == "help")
    }

    /// A parameter.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.get(name).map(String::as_str)
    }

    /// A parameter that is yes or no.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Fault> {
        let Some(text) = self.param(name) else { return Ok(None) };
        match text.to_ascii_lowercase().as_str() {
            "on" | "yes" | "y" | "true" | "1" => Ok(Some(true)),
            "off" | "no" | "n" | "false" | "0" => Ok(Some(false)),
            _ => Err(Fault::invalid(format!("{name}: {text:?} is neither yes nor no")).next(USAGE)),
        }
    }

    /// The arguments of these names, in their order, whether they were given as such or by name.
    pub fn positional<const N: usize>(&self, names: [&str; N]) -> Result<[String; N], Fault> {
        let by_name = names.map(|name| self.params.get(name).filter(|value| !value.is_empty()).cloned());
        let mut args = self.args.clone();
        let missing = by_name.iter().filter(|given| given.is_none()).count();
        if args.len() != missing {
            let what = if args.len() < missing { "missing" } else { "too many" };
            return Err(
                Fault::invalid(format!("arguments are {what}: {} are needed, {}", names.len(), names.join(", "))).next(USAGE)
            );
        }
        // From the back, as Rocks does: what is left fills what was not named.
        let mut filled = by_name;
        for place in filled.iter_mut().rev().filter(|place| place.is_none()) {
            *place = args.pop();
        }
        Ok(filled.map(Option::unwrap_or_default))
    }

    /// All arguments, of which there must be one.
    pub fn several(&self, name: &str) -> Result<Vec<String>, Fault> {
        if self.args.is_empty() {
            return Err(Fault::invalid(format!("an argument is missing: at least one {name} is needed")).next(USAGE));
        }
        Ok(self.args.clone())
    }
}

/// A word parsed, or an error that names its place.
pub fn parsed<T: FromStr<Err: Display>>(name: &str, text: &str) -> Result<T, Fault> {
    text.parse().map_err(|why| Fault::invalid(format!("{name}: {why}")).next(USAGE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(line: &[&str]) -> Result<Words, Fault> {
        let words: Vec<String> = line.iter().map(|w| (*w).to_owned()).collect();
        Words::of(&words, &[("list host storagemap", "{nas}"), ("list host zvolattr", "{nas} {zvol}")]).map(|(_, _, words)| words)
    }

    #[test]
    fn arguments_stand_in_their_order_or_by_name() {
        for line in [
            &["list", "host", "zvolattr", "a", "b"][..],
            &["list host zvolattr", "a", "b"],
            &["list", "host", "zvolattr", "zvol=b", "a"],
            &["list", "host", "zvolattr", "nas=a", "b"],
            &["list", "host", "zvolattr", "zvol=b", "nas=a"],
        ] {
            assert_eq!(of(line).unwrap().positional(["nas", "zvol"]).unwrap(), ["a", "b"], "{line:?}");
        }
        for line in [&["list host zvolattr"][..], &["list host zvolattr", "a"], &["list host zvolattr", "a", "b", "c"]] {
            assert_eq!(of(line).unwrap().positional(["nas", "zvol"]).unwrap_err().next, USAGE);
        }
        assert!(of(&["list", "host"]).is_err() && of(&["frobnicate"]).is_err() && of(&[""]).is_err());
    }

    proptest! {
        #[test]
        fn no_words_make_it_panic(words in proptest::collection::vec(".{0,12}|list|host|zvolattr|a=b|nas=", 0..7)) {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            if let Ok(given) = of(&words) {
                let _ = (given.positional(["nas", "zvol"]), given.flag("a"), given.several("nas"), given.wants_help());
            }
        }
    }
}
