//! `towpath`: starts the roles, and is their command line.
#![forbid(unsafe_code)]

mod config;
mod subscriber;

fn main() -> std::process::ExitCode {
    let path = std::env::args_os().nth(1).unwrap_or(config::DEFAULT_PATH.into());
    match config::Config::load_or_default(path.as_ref()) {
        Ok(_) => print!("{}", config::EXAMPLE),
        Err(error) => eprintln!("error: {error}"),
    }
    std::process::ExitCode::SUCCESS
}
