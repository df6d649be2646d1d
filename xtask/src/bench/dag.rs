//! One random DAG, written as a pipeline, as a GitHub workflow and as a ninja file: the same jobs with the same needs.

use std::fmt::Write as _;

/// Needs reach at most this many stages back, as those of real pipelines do.
const WINDOW: u64 = 40;

/// A DAG of stages; stage `i` needs the stages `needs[i]`, all smaller than `i`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dag {
    /// Sorted, without repeats.
    pub(crate) needs: Vec<Vec<usize>>,
}

impl Dag {
    /// `stages` stages with none to three needs each. The same seed gives the same DAG.
    pub(crate) fn random(stages: usize, seed: u64) -> Self {
        let mut random = SplitMix(seed);
        let needs = (0..stages)
            .map(|stage| {
                let reach = WINDOW.min(stage as u64);
                let count = if reach == 0 { 0 } else { random.below(4) };
                let mut needs: Vec<usize> = (0..count)
                    .filter_map(|_| stage.checked_sub(1 + usize::try_from(random.below(reach)).unwrap_or(0)))
                    .collect();
                needs.sort_unstable();
                needs.dedup();
                needs
            })
            .collect();
        Self { needs }
    }

    /// A pipeline whose stages run `command`, `parallel` at a time.
    pub(crate) fn pipeline(&self, command: &str, parallel: usize) -> String {
        let mut text = format!("pipeline bench {{\n  max_parallel = {parallel}\n}}\n");
        for (stage, needs) in self.needs.iter().enumerate() {
            let _ = write!(text, "\nstage s{stage} {{\n");
            if !needs.is_empty() {
                let _ = writeln!(text, "  needs = [{}]", names(needs, ", "));
            }
            let _ = write!(text, "  run \"{command}\"\n}}\n");
        }
        text
    }

    /// A GitHub workflow whose jobs run `command`.
    pub(crate) fn workflow(&self, command: &str) -> String {
        let mut text = "name: bench\non: push\njobs:\n".to_owned();
        for (stage, needs) in self.needs.iter().enumerate() {
            let _ = write!(text, "  s{stage}:\n    runs-on: ubuntu-latest\n");
            if !needs.is_empty() {
                let _ = writeln!(text, "    needs: [{}]", names(needs, ", "));
            }
            let _ = write!(text, "    steps:\n      - run: \"{command}\"\n");
        }
        text
    }

    /// A ninja file whose edges run `command`. Nothing makes the outputs, so every build runs every edge.
    pub(crate) fn ninja(&self, command: &str) -> String {
        let mut text = format!("rule r\n  command = {command}\n");
        for (stage, needs) in self.needs.iter().enumerate() {
            let _ = writeln!(text, "build s{stage}: r {}", names(needs, " "));
        }
        text
    }
}

fn names(stages: &[usize], between: &str) -> String {
    stages.iter().map(|stage| format!("s{stage}")).collect::<Vec<_>>().join(between)
}

/// Steele, Lea, Flood: one word of state, good enough for shapes of graphs.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_is_the_same_dag_and_needs_point_back() {
        let dag = Dag::random(1000, 3);
        assert_eq!(dag, Dag::random(1000, 3));
        assert_ne!(dag, Dag::random(1000, 4));
        assert!(dag.needs.iter().enumerate().all(|(stage, needs)| needs.iter().all(|need| *need < stage)));
        let edges: usize = dag.needs.iter().map(Vec::len).sum();
        assert!((1200..1600).contains(&edges), "{edges}");
    }

    #[test]
    fn three_texts_of_one_dag() {
        let dag = Dag { needs: vec![vec![], vec![0], vec![0, 1]] };
        assert_eq!(
            dag.pipeline("true", 2),
            "pipeline bench {\n  max_parallel = 2\n}\n\nstage s0 {\n  run \"true\"\n}\n\nstage s1 {\n  needs = [s0]\n  \
             run \"true\"\n}\n\nstage s2 {\n  needs = [s0, s1]\n  run \"true\"\n}\n"
        );
        assert_eq!(
            dag.workflow("true"),
            "name: bench\non: push\njobs:\n  s0:\n    runs-on: ubuntu-latest\n    steps:\n      - run: \"true\"\n  \
             s1:\n    runs-on: ubuntu-latest\n    needs: [s0]\n    steps:\n      - run: \"true\"\n  \
             s2:\n    runs-on: ubuntu-latest\n    needs: [s0, s1]\n    steps:\n      - run: \"true\"\n"
        );
        assert_eq!(
            dag.ninja("true"),
            "rule r\n  command = true\nbuild s0: r \nbuild s1: r s0\nbuild s2: r s0 s1\n"
        );
    }
}
