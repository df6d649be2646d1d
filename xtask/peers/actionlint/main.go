// Times actionlint as a library, inside one process: what is left is reading, parsing and checking, without starting a
// program. `cargo xtask bench check` builds and runs it; the Rust side of the comparison is ../check.
//
// Usage: actionlint-inprocess FILE ROUNDS. Prints one line of nanoseconds for each round.
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/rhysd/actionlint"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: actionlint-inprocess FILE ROUNDS")
	}
	rounds, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for range rounds {
		begin := time.Now()
		text, err := os.ReadFile(args[0])
		if err != nil {
			return err
		}
		// A new one each round: it must not profit from what the round before found out.
		linter, err := actionlint.NewLinter(io.Discard, &actionlint.LinterOptions{})
		if err != nil {
			return err
		}
		found, err := linter.Lint(args[0], text, nil)
		if err != nil {
			return err
		}
		took := time.Since(begin)
		if len(found) != 0 {
			return fmt.Errorf("%d findings in a workflow that has no mistake: %v", len(found), found[0])
		}
		fmt.Println(took.Nanoseconds())
	}
	return nil
}
