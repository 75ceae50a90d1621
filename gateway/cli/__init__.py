"""The ``tollhouse`` command. One file per group of sub-commands, each imported when it is called.

Exit status: 0 done, 1 a check failed, 2 wrong usage, 3 the gateway cannot be reached.
"""

import importlib
import sys

import click

from gateway import __version__
from gateway.cli import cpu

# Sub-command: (module, attribute, one line of help). Imported late: `tollhouse key list` should
# not wait for ONNX Runtime.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "serve": ("gateway.cli.serve", "serve", "Run the gateway."),
    "simulate": ("gateway.cli.simulate", "simulate", "Run a simulated OpenAI-compatible provider."),
    "demo": ("gateway.cli.demo", "demo", "Show the whole job on real models."),
    "key": ("gateway.cli.keys", "key", "Create, list and revoke keys."),
    "policy": ("gateway.cli.policy", "policy", "Check, explain and roll back policies."),
    "switch": ("gateway.cli.policy", "switch", "Throw an expiring kill switch."),
    "models": ("gateway.cli.models", "models", "List, fetch and verify local models."),
    "usage": ("gateway.cli.usage", "usage", "Report what was used and what it cost."),
    "ledger": ("gateway.cli.usage", "ledger", "Verify, rebuild and inspect the ledger."),
    "backup": ("gateway.cli.backup", "backup", "Write the state folder into one file."),
    "restore": ("gateway.cli.backup", "restore", "Fill an empty state folder from a backup."),
    "worker": ("gateway.cli.serve", "worker", ""),
    "admin-process": ("gateway.cli.serve", "admin_process", ""),
}
HIDDEN = frozenset({"worker", "admin-process"})


class LazyGroup(click.Group):
    """A group whose sub-commands are imported only when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, as ``--help`` lists them."""
        return [name for name in COMMANDS if name not in HIDDEN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in self.list_commands(ctx)])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tollhouse")
def cli() -> None:
    """Tollhouse, the AI gateway."""
    cpu.check()


def main() -> None:
    """Entry point of the installed command."""
    sys.exit(cli(prog_name="tollhouse"))
