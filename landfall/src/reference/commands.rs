//! Commands, options and environment variables, from the command line.

use clap::{Arg, Command, CommandFactory};

use super::markdown::{code, table};
use crate::Cli;

pub(super) fn section() -> String {
    let mut cli = Cli::command();
    cli.build();
    let mut text = format!("## Commands\n\n### landfall\n\nOptions of all commands.\n\n{}", options(&cli, |_| true));
    for command in cli.get_subcommands().filter(|command| command.get_name() != "help") {
        let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
        text += &format!("\n### landfall {}\n\n{about}\n", command.get_name());
        let own = options(command, |arg| !arg.is_global_set());
        if !own.is_empty() {
            text += &format!("\n{own}");
        }
    }
    text
}

fn options(command: &Command, is_listed: impl Fn(&Arg) -> bool) -> String {
    let arguments =
        command.get_arguments().filter(|arg| is_listed(arg) && !["help", "version"].contains(&arg.get_id().as_str()));
    let rows: Vec<_> = arguments.map(describe).collect();
    if rows.is_empty() { String::new() } else { table(["option", "variable", "meaning"], rows) }
}

fn describe(arg: &Arg) -> [String; 3] {
    let value =
        arg.get_value_names().filter(|_| arg.get_action().takes_values()).map(|names| format!(" <{}>", names[0]));
    let name = match arg.get_long() {
        Some(long) => format!("--{long}{}", value.unwrap_or_default()),
        None => arg.get_id().to_string(),
    };
    let variable = arg.get_env().map(|name| code(&name.to_string_lossy())).unwrap_or_default();
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut help = format!("{}.", help.trim_end_matches('.'));
    if arg.get_action().takes_values() {
        let values = arg.get_possible_values();
        let values = values.iter().map(|value| code(value.get_name())).collect::<Vec<_>>();
        let defaults = arg.get_default_values().iter().map(|value| code(&value.to_string_lossy()));
        let defaults = defaults.collect::<Vec<_>>();
        for (title, list) in [("Values", values), ("Default", defaults)] {
            if !list.is_empty() {
                help += &format!(" {title}: {}.", list.join(", "));
            }
        }
    }
    [code(&name), variable, help]
}
