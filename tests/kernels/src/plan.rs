//! The steps that a guest runs, and their text form, which the guest reads. Pure.

use std::path::PathBuf;

/// A program that the guest runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `dataplane::spread`. The transcript has it in the header of the step.
    pub name: String,
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// The folder in which it runs.
    pub folder: PathBuf,
    /// The guest ends it after this time.
    pub seconds: u32,
}

impl Step {
    /// The line before the output of the step, in the form of cargo.
    pub fn header(&self) -> String {
        format!("     Running {0} ({0}-0)", self.name)
    }

    /// The step on one line. Fields are separated by tabs.
    fn line(&self) -> String {
        let fields = [self.name.clone(), self.seconds.to_string()].into_iter();
        let paths = [&self.folder, &self.program].map(|path| path.display().to_string());
        let fields: Vec<String> = fields.chain(paths).chain(self.arguments.iter().cloned()).collect();
        fields.join("\t")
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split('\t');
        let (name, seconds) = (fields.next()?.to_owned(), fields.next()?.parse().ok()?);
        let (folder, program) = (fields.next()?.into(), fields.next()?.into());
        Some(Self { name, program, arguments: fields.map(str::to_owned).collect(), folder, seconds })
    }
}

/// All steps as text.
pub fn write(steps: &[Step]) -> String {
    steps.iter().map(|step| step.line() + "\n").collect()
}

/// The steps in a text. `None` if a line is not a step.
pub fn read(text: &str) -> Option<Vec<Step>> {
    text.lines().map(Step::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_reads_the_steps_as_written() {
        let step = |name: &str, arguments: &[&str]| Step {
            name: name.to_owned(),
            program: "/r/target/debug/deps/spread-0f".into(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            folder: "/r/data plane".into(),
            seconds: 60,
        };
        let steps = [step("dataplane::spread", &["--include-ignored", "a b"]), step("doctor", &[])];
        assert_eq!(read(&write(&steps)).as_deref(), Some(&steps[..]));
        assert_eq!(read("doctor\tsoon\t/r\t/doctor\n"), None);
    }
}
