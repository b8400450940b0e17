//! The committed corpus: few small inputs that reach what many reached.
//!
//! libFuzzer tells which features (an edge and how often it was taken) every input has; the choice is made here,
//! because its own merge keeps every input with a feature of its own, and thousands of files are no corpus to commit.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::sh::Cmd;

/// Most inputs of a target that are committed.
const FILES: usize = 180;
/// Most bytes of a target's inputs.
const BYTES: u64 = 64 << 10;
/// What a file costs beside its bytes, when inputs are weighed against each other.
const FILE_COST: u64 = 64;
/// Counters of one edge in libFuzzer's feature numbers: eight powers of two of how often it was taken.
const COUNTERS: u64 = 8;

/// An input and what it reaches.
#[derive(Debug, Default, PartialEq)]
struct Input {
    path: PathBuf,
    size: u64,
    features: Vec<u64>,
}

/// Puts the best of the committed and the grown inputs into `committed`; returns how many.
pub(super) fn keep(binary: &Path, grown: &Path, committed: &Path) -> Result<usize> {
    let scratch = tempfile::tempdir()?;
    let (merged, control) = (scratch.path().join("merged"), scratch.path().join("control"));
    fs::create_dir(&merged)?;
    Cmd::new(binary)
        .args(["-set_cover_merge=1", "-rss_limit_mb=2048", "-timeout=10"])
        .arg(format!("-merge_control_file={}", control.display()))
        .args([&merged, committed, grown])
        .limit(Duration::from_secs(600))
        .run()?;
    let inputs = read_control(&fs::read_to_string(&control).context("libFuzzer left no control file")?);
    ensure!(!inputs.is_empty(), "libFuzzer's control file names no input");
    let chosen = choose(&inputs);
    let contents: Vec<_> = chosen
        .iter()
        .map(|input| Ok((input.path.file_name().map(PathBuf::from), fs::read(&input.path)?)))
        .collect::<Result<_>>()?;
    for old in fs::read_dir(committed)? {
        fs::remove_file(old?.path())?;
    }
    for (name, bytes) in &contents {
        if let Some(name) = name {
            fs::write(committed.join(name), bytes)?;
        }
    }
    Ok(contents.len())
}

/// Reads the file libFuzzer notes the features of its inputs in.
fn read_control(text: &str) -> Vec<Input> {
    let mut lines = text.lines();
    let count: usize = lines.next().and_then(|line| line.parse().ok()).unwrap_or(0);
    // The second line counts the inputs of the first folder, which is empty.
    let mut inputs: Vec<_> = lines
        .by_ref()
        .skip(1)
        .take(count)
        .map(|path| Input {
            path: path.into(),
            ..Input::default()
        })
        .collect();
    for line in lines {
        let mut words = line.split_whitespace();
        let (Some(kind), Some(number)) = (words.next(), words.next()) else {
            continue;
        };
        let Some(input) = number
            .parse::<usize>()
            .ok()
            .and_then(|number| inputs.get_mut(number))
        else {
            continue;
        };
        let mut numbers = words.filter_map(|word| word.parse().ok());
        match kind {
            "STARTED" => input.size = numbers.next().unwrap_or(0),
            "FT" => input.features = numbers.collect(),
            _ => {}
        }
    }
    inputs
}

/// First what reaches every edge, then what reaches it often, each time the input with the most news for its size,
/// as long as there is room.
fn choose(inputs: &[Input]) -> Vec<&Input> {
    let mut chosen = BTreeMap::new();
    let mut bytes = 0;
    for unit in [COUNTERS, 1] {
        let reached: Vec<HashSet<u64>> = inputs
            .iter()
            .map(|input| input.features.iter().map(|feature| feature / unit).collect())
            .collect();
        let mut seen: HashSet<u64> = chosen
            .keys()
            .flat_map(|number: &usize| reached[*number].iter().copied())
            .collect();
        loop {
            let best = inputs
                .iter()
                .enumerate()
                .filter(|(number, input)| {
                    !chosen.contains_key(number) && chosen.len() < FILES && bytes + input.size <= BYTES
                })
                .map(|(number, input)| {
                    let news = reached[number].difference(&seen).count() as u64;
                    (news * 1_000_000 / (input.size + FILE_COST), number, input)
                })
                .max_by_key(|(gain, number, _)| (*gain, usize::MAX - number));
            let Some((1.., number, input)) = best else {
                break;
            };
            seen.extend(&reached[number]);
            bytes += input.size;
            chosen.insert(number, input);
        }
    }
    chosen.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_file_is_read() {
        let text = "2\n0\na/one\na/two\nSTARTED 0 7\nFT 0 8 9\nCOV 0 1\nSTARTED 1 3\n";
        let inputs = read_control(text);
        assert_eq!(inputs.len(), 2);
        assert_eq!(
            (inputs[0].size, inputs[0].features.as_slice()),
            (7, [8, 9].as_slice())
        );
        assert_eq!(
            (inputs[1].path.as_path(), inputs[1].size),
            (Path::new("a/two"), 3)
        );
    }

    #[test]
    fn small_inputs_that_reach_the_same_are_chosen() {
        let input = |name: &str, size, features: &[u64]| Input {
            path: name.into(),
            size,
            features: features.to_vec(),
        };
        let inputs = [
            input("large", 5000, &[8, 16, 24]),
            input("small", 10, &[8, 16]),
            input("other", 20, &[24, 25]),
            input("again", 300, &[8, 16, 24]),
            input("huge", BYTES + 1, &[99]),
        ];
        let names: Vec<_> = choose(&inputs)
            .iter()
            .map(|input| input.path.to_str().unwrap())
            .collect();
        assert_eq!(names, ["small", "other"]);
    }

    #[test]
    fn a_corpus_stays_small() {
        let inputs: Vec<_> = (0..1000)
            .map(|number| Input {
                path: number.to_string().into(),
                size: 100,
                features: vec![number * 8],
            })
            .collect();
        assert_eq!(choose(&inputs).len(), FILES);
    }
}
