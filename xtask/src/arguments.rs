//! The command line in its simplest form: flags, and options with a value. Nothing unknown passes.

use std::collections::BTreeMap;

/// A command's arguments, checked against what it takes.
#[derive(Debug, Default)]
pub struct Arguments {
    flags: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Arguments {
    /// Parses `words`; refuses what is neither in `flags` nor in `options`, and an option said twice.
    pub fn parse(words: &[String], flags: &[&str], options: &[&str]) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let (name, inline) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            if flags.contains(&name) && inline.is_none() {
                parsed.flags.push(name.to_owned());
            } else if options.contains(&name) {
                let value = inline.or_else(|| words.next().cloned());
                let value = value.filter(|value| !value.is_empty()).ok_or(format!("{name} needs a value"))?;
                if parsed.values.insert(name.to_owned(), value).is_some() {
                    return Err(format!("{name} is given twice"));
                }
            } else {
                return Err(format!("{word:?} is not understood here; `cargo xtask help` lists what is"));
            }
        }
        Ok(parsed)
    }

    /// Whether the flag was given.
    pub fn flag(&self, name: &str) -> bool {
        self.flags.iter().any(|flag| flag == name)
    }

    /// The option's value, if given.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The option's value as a number, or `default`.
    pub fn number(&self, name: &str, default: u64) -> Result<u64, String> {
        match self.value(name) {
            None => Ok(default),
            Some(word) => word.parse().map_err(|_| format!("{name} takes a number, not {word:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expect: Result<(bool, Option<&str>), &str>) {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let got = Arguments::parse(&words, &["--check"], &["--dir"]);
        match expect {
            Ok((flag, value)) => {
                let got = got.unwrap();
                assert_eq!((got.flag("--check"), got.value("--dir")), (flag, value), "{line}");
            }
            Err(part) => assert!(got.unwrap_err().contains(part), "{line}"),
        }
    }

    #[test]
    fn words_become_flags_and_values() {
        check("", Ok((false, None)));
        check("--check --dir d", Ok((true, Some("d"))));
        check("--dir=d", Ok((false, Some("d"))));
        check("--dir", Err("needs a value"));
        check("--dir=", Err("needs a value"));
        check("--dir a --dir b", Err("twice"));
        check("--chekc", Err("not understood"));
        check("--check=yes", Err("not understood"));
        check("stray", Err("not understood"));
    }

    #[test]
    fn a_number_is_a_number() {
        let words = ["--seeds".to_owned(), "many".to_owned()];
        let got = Arguments::parse(&words, &[], &["--seeds"]).unwrap();
        assert!(got.number("--seeds", 1).unwrap_err().contains("takes a number"));
        assert_eq!(got.number("--start", 7), Ok(7));
    }
}
