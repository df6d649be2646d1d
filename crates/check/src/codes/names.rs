//! CD02xx: names and structure.

codes! {
    UNKNOWN_STATEMENT = "CD0201" Error "unknown statement";
    "A line that starts with a word and has no `=` is a statement, and its word must be one that may stand there. A misspelt \
     statement would otherwise do nothing, silently."
    bad "stage build {\n  rn \"make\"\n}\n"
    good "stage build {\n  run \"make\"\n}\n"

    UNKNOWN_SETTING = "CD0202" Error "unknown setting";
    "Each statement has a fixed list of settings. One that it does not have would do nothing, silently: a `timout` would let a \
     step run for ever. `cdpipe explain WORD` lists the settings of a statement."
    bad "stage build {\n  timout = 5m\n  run \"make\"\n}\n"
    good "stage build {\n  timeout = 30m\n  run \"make\"\n}\n"

    MISPLACED = "CD0203" Error "statement in the wrong place";
    "The statement exists, but not here. The message says where it may stand."
    bad "stage build {\n  run \"make\"\n  approval { by = [\"ops\"] }\n}\n"
    good "stage build {\n  run \"make\"\n}\ngate release {\n  needs = [build]\n  approval { by = [\"ops\"] }\n}\nstage publish {\n  needs = [release]\n  run \"make publish\"\n}\n"

    DUPLICATE_SETTING = "CD0204" Error "setting given twice";
    "A setting has one value. With two of them nobody could tell which one was meant."
    bad "stage build {\n  timeout = 30m\n  timeout = 40m\n  run \"make\"\n}\n"
    good "stage build {\n  timeout = 30m\n  run \"make\"\n}\n"

    DUPLICATE_STATEMENT = "CD0205" Error "statement given twice";
    "This statement may stand only once in its place, for instance one `target` in an environment. Put what both say into one."
    bad "pipeline shop {}\npipeline shop {}\nstage build { run \"make\" }\n"
    good "pipeline shop {}\nstage build { run \"make\" }\n"

    MISSING_SETTING = "CD0206" Error "missing setting";
    "Without this setting the statement has no meaning, and there is no default that would be right for everyone."
    bad "flags main redis { key = \"feature:$flag\" }\nstage off { flag disable \"new\" with main }\n"
    good "flags main redis { url = \"redis://localhost:6379\", key = \"feature:$flag\" }\nstage off { flag disable \"new\" with main }\n"

    EMPTY_BODY = "CD0207" Error "empty statement";
    "The statement has braces and nothing in them. A stage without steps would succeed without having done anything."
    bad "stage build {}\n"
    good "stage build { run \"make\" }\n"

    MISSING_BODY = "CD0208" Error "missing body";
    "The statement needs `{ … }`: what it is for stands in there."
    bad "stage build\n"
    good "stage build { run \"make\" }\n"

    STRAY_BODY = "CD0209" Error "body where none belongs";
    "The statement is complete without `{ … }`, and has nothing that could be set in one."
    bad "stage pause { wait 30s { timeout = 1m } }\n"
    good "stage pause { wait 30s }\n"

    HEAD = "CD0210" Error "statement is written differently";
    "What follows the keyword is not what this statement takes. The help line shows how it is written: words in capitals are \
     yours, brackets may be left out."
    bad "environment here {\n  target local\n}\nservice web { command = [\"./web\"] }\nstage up { deploy web in here }\n"
    good "environment here {\n  target local\n}\nservice web { command = [\"./web\"] }\nstage up { deploy web to here }\n"

    UNKNOWN_CHOICE = "CD0211" Error "unknown kind";
    "After some keywords stands one of a few words that decides what follows, such as the kind of a target."
    bad "environment here {\n  target podman\n}\nservice web { command = [\"./web\"] }\nstage up { deploy web to here }\n"
    good "environment here {\n  target local\n}\nservice web { command = [\"./web\"] }\nstage up { deploy web to here }\n"

    DUPLICATE_NAME = "CD0212" Error "name declared twice";
    "Two things of the same kind have the same name, perhaps one of them in a file that is brought in by `use`. Stages and gates \
     share their names, because both stand in the graph; parameters, secrets and services do, because expressions name them."
    bad "stage build { run \"make\" }\nstage build { run \"make again\" }\n"
    good "stage build { run \"make\" }\nstage again { run \"make again\" }\n"

    RESERVED_NAME = "CD0213" Error "name is taken by the language";
    "The name is one of the words that heads of statements read (`to`, `for`, `when`, …) or a built-in name (`git`, `stage`, \
     `candidate`, …). With a declaration of the same name a reader could not tell which is meant."
    bad "param candidate: string = \"a\"\nstage build { run \"make\" }\n"
    good "param flavour: string = \"a\"\nstage build { run \"make ${flavour}\" }\n"

    UNKNOWN_NAME = "CD0214" Error "unknown name";
    "An expression names something that is neither a parameter nor anything else that is known here. Text needs quotes."
    bad "param version: string = \"v1\"\nstage build { run \"make ${verison} ${version}\" }\n"
    good "param version: string = \"v1\"\nstage build { run \"make ${version}\" }\n"

    UNKNOWN_REFERENCE = "CD0215" Error "nothing of that name is declared";
    "A statement names a service, an environment, a stage or the like that the pipeline does not declare."
    bad "environment here { target local }\nservice web { command = [\"./web\"] }\nstage up { deploy web to there }\nstage too { needs = [up]; deploy web to here }\n"
    good "environment here { target local }\nservice web { command = [\"./web\"] }\nstage up { deploy web to here }\n"

    USE_FAILED = "CD0216" Error "file can't be brought in";
    "The file that `use` names can't be read, is outside of what may be named (an absolute path, a URL), or leads back to a file \
     that is being brought in already."
    bad "use \"./nowhere.cd\"\nstage build { run \"make\" }\n"
    good "stage build { run \"make\" }\n"

    NOT_IN_USED_FILE = "CD0217" Error "statement may not stand in a used file";
    "A file that is brought in by `use` may hold services, metrics, named strategies, named watches and further `use`. Stages, inputs and \
     environments stand in the pipeline's own file, so that whoever reads it sees all that it does."
    bad "use \"./stages.cd\"\nstage build { run \"make\" }\n"
    good "use \"./services.cd\"\nstage build { run \"make\" }\n"

    SETTING_OR_STATEMENT = "CD0218" Error "setting and statement mixed up";
    "`name = value` is a setting, `keyword value` a statement. This word is known here, but as the other one."
    bad "stage build {\n  timeout 30m\n  run \"make\"\n}\n"
    good "stage build {\n  timeout = 30m\n  run \"make\"\n}\n"

    UNKNOWN_FUNCTION = "CD0219" Error "unknown function";
    "There is no function of this name. `cdpipe explain functions` lists them."
    bad "stage build {\n  when = begins_with(git.tag, \"v\")\n  run \"make\"\n}\n"
    good "stage build {\n  when = starts_with(git.tag, \"v\")\n  run \"make\"\n}\n"

    UNKNOWN_FIELD = "CD0220" Error "unknown field";
    "What stands before the dot is known, but has nothing of this name."
    bad "stage build { run \"make ${git.comit}\" }\n"
    good "stage build { run \"make ${git.sha}\" }\n"

    NOT_HERE = "CD0221" Error "name is not known in this place";
    "The name exists, but not here: `candidate` is known inside a deploy, `reason` in a hook, measurements in rules."
    bad "stage build { run \"echo ${reason}\" }\n"
    good "stage build {\n  run \"make\"\n  on failure { run \"echo ${reason}\" }\n}\n"

    NOTHING_TO_RUN = "CD0222" Warning "nothing to run";
    "The pipeline has no stage and no gate, so a run of it does nothing."
    bad "pipeline shop { mode = delivery }\n"
    good "pipeline shop { mode = delivery }\nstage build { run \"make\" }\n"

    MISSING_STATEMENT = "CD0223" Error "missing statement or setting";
    "Something has to be there that is not: an environment needs a `target`, metrics need a `source`, a service needs one of `image`, \
     `command`, `compose` and `manifest`."
    bad "environment here { vars { A = \"b\" } }\nservice web { command = [\"./web\"] }\nstage up { deploy web to here }\n"
    good "environment here { target local }\nservice web { command = [\"./web\"] }\nstage up { deploy web to here }\n"

    EXCLUSIVE = "CD0224" Error "only one of these";
    "These exclude each other: a service is made from one thing, a deploy has one strategy."
    bad "environment here { target local }\nservice web { command = [\"./web\"] }\nstage up { deploy web to here { rolling { batch = 2 }; recreate } }\n"
    good "environment here { target local }\nservice web { command = [\"./web\"] }\nstage up { deploy web to here { rolling { batch = 2 } } }\n"

    STRAY_TYPE = "CD0225" Error "type missing, or where none belongs";
    "Metrics say their unit after the name (`error_rate: percent = …`). Other settings have a type of their own, and take none."
    bad "stage build {\n  timeout: duration = 30m\n  run \"make\"\n}\n"
    good "stage build {\n  timeout = 30m\n  run \"make\"\n}\n"
}
