//! What the command line says: its help, and its errors where no daemon is.

use clap::{CommandFactory, Parser};

use super::{Cli, run};

/// The help of `command` and of all below it.
fn help(command: &mut clap::Command, path: &str, out: &mut String) {
    out.push_str(&format!("$ {path} --help\n{}\n", command.render_help()));
    for below in command.get_subcommands_mut().filter(|below| !below.is_hide_set()) {
        let path = format!("{path} {}", below.get_name());
        help(below, &path, out);
    }
}

#[test]
fn the_help_is_short_and_has_an_example_each() {
    let mut command = Cli::command().term_width(100);
    command.build();
    for group in command.get_subcommands().filter(|group| !group.is_hide_set()) {
        let examples = std::iter::once(group).filter(|group| !group.has_subcommands()).chain(group.get_subcommands());
        for command in examples {
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let example = after.contains("Example: ") || ["doctor", "version"].contains(&command.get_name());
            assert!(example, "{} has no example", command.get_name());
        }
    }
    let mut out = String::new();
    help(&mut command, "den", &mut out);
    insta::assert_snapshot!("help", out);
}

/// The refusal of a command line, and its exit code.
fn refused(words: &[&str]) -> String {
    let cli = match Cli::try_parse_from(std::iter::once("den").chain(words.iter().copied())) {
        Ok(cli) => cli,
        Err(error) => return format!("{}exit {}\n", error.render(), error.exit_code()),
    };
    let trouble = run(cli).expect_err("refused");
    format!("{}exit {}\n", trouble.shown(), trouble.code())
}

#[test]
fn errors_where_no_daemon_is() {
    let out: String = [
        // Port 1 is tcpmux, which nobody runs.
        &["--url", "http://127.0.0.1:1", "ls"][..],
        &["--url", "https://example.org", "ls"],
        &["--url", "nonsense://x", "ls"],
        &["--data", "/nonexistent", "new", "web"],
        &["--data", "/nonexistent", "exec", "web", "true"],
        &["exec", "web"],
        &["exec", "web", "--timeout", "soon", "--", "true"],
        &["exec", "web", "--env", "X", "--", "true"],
        &["exec", "-d", "-i", "web", "--", "cat"],
        &["new", "--cpus"],
        &["cp", "a", "b"],
        &["cp", "web:a", "b"],
        &["rm"],
        &["lss"],
        &["image", "build", "--form", "x"],
        &["attach", "web"],
        &["snaps", "rm", "web"],
        &["snaps", "web", "12"],
        &["restore", "web"],
        &["restore", "@12"],
        &["fork", "web@"],
        &["fork", "web", "--count", "0"],
        &["cat", "web@12"],
        &["cat", "web", "etc/hosts"],
        &["ls", "web", "--quiet"],
        &["tree"],
        &["blame", "web"],
        &["blame", "web@3", "/etc"],
        &["cp", "a", "web@12:/root"],
        &["diff", "web", "--stat", "--text"],
        &["explore", "web"],
    ]
    .iter()
    .map(|words| format!("$ den {}\n{}\n", words.join(" "), refused(words)))
    .collect();
    insta::assert_snapshot!("errors", out);
}

#[test]
fn what_a_model_would_guess_is_understood() {
    let check = |words: &str| {
        assert!(Cli::try_parse_from(words.split(' ')).is_ok(), "{words}");
    };
    check("den create web --image base");
    check("den list");
    check("den ps --json");
    check("den delete web");
    check("den rm -f web db");
    check("den exec web ls -la /");
    check("den exec -it web bash");
    check("den exec web --json -- ls --json");
    check("den exec --workdir /srv -e A=1 -u user web -- env");
    check("den logs web");
    check("den log web 3 --follow");
    check("den cp -a src web:/root/");
    check("den cp -r src web:/root/");
    check("den images ls");
    check("den inspect web");
    check("den image build base --packages curl jq");
    check("den image build base --packages curl,jq --packages git");
    check("den stop -t 3s web");
    check("den forward web 8080:80 5432");
    check("den port-forward web 8080 --address 0.0.0.0");
    check("den ports web --json");
    check("den snapshot web before");
    check("den snapshots web");
    check("den clone web@12 try");
    check("den fork web --count 4 --label team=red");
    check("den rollback web@12");
    check("den diff web@3 @5 --name-only");
    check("den diff try --json --path /etc --path /srv");
    check("den grep -rn web@12 listen /etc");
    check("den grep -i -F web a.b");
    check("den ls web@12:/etc");
    check("den ls web /etc --json");
    check("den tree web -L 2");
    check("den log web --grep apt --path /etc -n 0");
    check("den explore web -n 4 --run make --score ./score --keep none --merge");
}

#[test]
fn words_after_the_command_are_the_commands() {
    let cli = Cli::try_parse_from(["den", "exec", "web", "grep", "--json", "-i", "x"]).unwrap();
    assert!(!cli.global.json);
    let super::Command::Exec(args) = cli.command else { panic!("exec") };
    assert_eq!(args.command(), ["grep", "--json", "-i", "x"]);
}
