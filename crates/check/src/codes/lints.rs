//! CD09xx: what is most likely a mistake.

codes! {
    UNUSED = "CD0901" Warning "declared and never used";
    "Nothing uses it. Either a use is missing, or it can go: an input that nobody reads makes people think that it does something."
    bad "param colour: string = \"red\"\nstage build { run \"make\" }\n"
    good "param colour: string = \"red\"\nstage build { run \"make ${colour}\" }\n"

    CONSTANT = "CD0902" Warning "condition never changes";
    "The condition is always true, or always false, whatever the inputs are."
    bad "stage build {\n  when = 1 == 1\n  run \"make\"\n}\n"
    good "stage build {\n  when = git.branch == \"main\"\n  run \"make\"\n}\n"

    MEMBER_OR_PARAM = "CD0903" Warning "word and parameter have the same name";
    "In a setting that takes one of a few words, a bare word is that word, even if a parameter has the same name. Rename the parameter, or write `if … then … else …` \
     where its value was meant."
    bad "param delivery: string = \"x\"\npipeline shop { mode = delivery }\nstage build { run \"make ${delivery}\" }\n"
    good "param kind: string = \"x\"\npipeline shop { mode = delivery }\nstage build { run \"make ${kind}\" }\n"

    HOOK_CANT_BE_UNDONE = "CD0904" Warning "rollback hook that can't be taken back";
    "The step in a rollback hook changes something that can't be undone. If the rollback was a mistake, or the hook fails half-way, nothing leads back."
    bad "environment here { target local }\nservice web { command = [\"./web\"] }\nstage up {\n  deploy web to here\n  on rollback { run \"./drop-tables\" { effect = irreversible } }\n}\n"
    good "environment here { target local }\nservice web { command = [\"./web\"] }\nstage up {\n  deploy web to here\n  on rollback { run \"./report\" }\n}\n"

    NEVER_FIRES = "CD0905" Warning "hook can never run";
    "Nothing in this stage can end so: without a deploy, or an `undo`, there is no rollback."
    bad "stage build {\n  run \"make\"\n  on rollback { run \"./report\" }\n}\n"
    good "stage build {\n  run \"make\"\n  on failure { run \"./report\" }\n}\n"

    UNDO_OF_NOTHING = "CD0906" Warning "undo has nothing to undo";
    "`undo` says how to take back what the steps before it did, and no step stands before it."
    bad "stage migrate {\n  undo { run \"./migrate down\" }\n  run \"./migrate up\"\n}\n"
    good "stage migrate {\n  run \"./migrate up\"\n  undo { run \"./migrate down\" }\n}\n"

    ROLLBACK_OF_NOTHING = "CD0907" Warning "stage has nothing to roll back";
    "The stage that is to be rolled back has no deploy, no flag, no manifests and no `undo`: there is nothing cdpipe could take back."
    bad "stage build { run \"make\" }\non failure { rollback stage build }\n"
    good "stage build {\n  run \"make\"\n  undo { run \"make clean\" }\n}\non failure { rollback stage build }\n"

    UNUSED_METRIC = "CD0908" Warning "metric that nothing reads";
    "The metric is declared in a block of which other metrics are read, and no rule of a watch and no gate names this one: whatever it shows, nothing happens. \
     Either a rule is missing, or it can go."
    bad "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nmetrics traffic {\n  source scrape\n  error_rate: percent = ratio('errors_total', 'requests_total')\n  latency: duration = quantile(0.99, 'latency_seconds')\n}\nstage up {\n  deploy web to here {\n    canary { step 10% for 5m }\n    watch every 10s { rollback when candidate.error_rate > 5%; no_data = rollback }\n  }\n}\n"
    good "environment here {\n  target local\n  traffic proxy\n}\nservice web { command = [\"./web\"] }\nmetrics traffic {\n  source scrape\n  error_rate: percent = ratio('errors_total', 'requests_total')\n  latency: duration = quantile(0.99, 'latency_seconds')\n}\nstage up {\n  deploy web to here {\n    canary { step 10% for 5m }\n    watch every 10s {\n      rollback when candidate.error_rate > 5%\n      rollback when candidate.latency > 500ms\n      no_data = rollback\n    }\n  }\n}\n"

    UNUSED_OUTPUT = "CD0909" Warning "output that nothing reads";
    "The stage declares an output, so a command of it has to write one; and no other stage and no hook reads it. Either a use is missing, or it can go."
    bad "stage build {\n  run \"make; echo digest=1 >> $CDPIPE_OUTPUT\"\n  output digest: string\n}\nstage publish {\n  needs = [build]\n  run \"./publish\"\n}\n"
    good "stage build {\n  run \"make; echo digest=1 >> $CDPIPE_OUTPUT\"\n  output digest: string\n}\nstage publish {\n  needs = [build]\n  run \"./publish ${stage.build.digest}\"\n}\n"
}
