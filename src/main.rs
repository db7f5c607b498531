//! The program: see `cli` for its commands and the library's front page for its shape.

use std::process::ExitCode;

fn main() -> ExitCode {
    ntcp_overlay::cli::main()
}
