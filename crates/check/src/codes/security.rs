//! CD08xx: security.

codes! {
    IN_QUOTES = "CD0801" Error "value inside the shell's own quotes";
    "`${x}` reaches the shell as one word of data; cdpipe quotes it. Inside quotes of your own those quotes would end there, and the value would be split, or \
     not be replaced at all. The fix takes it out of the quotes."
    bad "param name: string = \"a\"\nstage build { run \"echo 'hello ${name}'\" }\n"
    good "param name: string = \"a\"\nstage build { run \"echo 'hello '${name}\" }\n"

    IN_SHELL_TEXT = "CD0802" Error "value where the shell takes no data";
    "In a heredoc, in arithmetic, inside `${…}` of the shell or after a backslash, a value would become part of the shell's own syntax. Give it by \
     `env { NAME = x }` and read `$NAME`, or use `stdin`."
    bad "param n: int = 1\nstage build { run \"echo $((1 + ${n}))\" }\n"
    good "param n: int = 1\nstage build { run \"echo $((1 + N))\" { env { N = n } } }\n"

    SECRET_LEAK = "CD0803" Error "secret where it would be seen";
    "A secret may flow only into `env`, `headers`, `stdin`, bodies of requests and credentials. In a command line every user of the machine sees it in the list \
     of processes; in a message or a name it is printed."
    bad "secret token\nstage push { run \"push --token ${token}\" }\n"
    good "secret token\nstage push { run \"push\" { env { TOKEN = token } } }\n"

    HARD_CODED = "CD0804" Warning "credential in the text";
    "A password, token or key stands in the file, so everyone who can read the repository, now or later, has it. Declare a `secret` and use that; and change the \
     credential, because it has been seen."
    bad "stage push { run \"push\" { env { API_TOKEN = \"ghp_0123456789abcdefghijABCDEFGHIJ012345\" } } }\n"
    good "secret api_token\nstage push { run \"push\" { env { API_TOKEN = api_token } } }\n"

    MUTABLE_TAG = "CD0805" Warning "image tag can move";
    "A tag such as `latest` (or none) names another image tomorrow: what was tested is not what runs, and a rollback to `latest` rolls back nothing."
    bad "environment here { target docker }\nservice web { image = \"acme/web:latest\" }\nstage up { deploy web to here }\n"
    good "environment here { target docker }\nservice web { image = \"acme/web:1.4.2\" }\nstage up { deploy web to here }\n"

    UNGUARDED = "CD0806" Warning "protected environment is reached without a gate";
    "In delivery mode a person approves what reaches a protected environment (one with `protected = true`, or named `production` or `prod`). This stage changes it, and no gate \
     stands before it."
    bad "environment production { target local }\nservice web { command = [\"./web\"] }\nstage up { deploy web to production }\n"
    good "environment production { target local }\nservice web { command = [\"./web\"] }\ngate release { approval { by = [\"ops\"] } }\nstage up { needs = [release]; deploy web to production }\n"

    IRREVERSIBLE_BEFORE_GATE = "CD0807" Warning "irreversible step before a gate";
    "The step can't be taken back, and a gate comes after it. If the gate says no, its effect stays."
    bad "stage migrate { run \"./migrate\" { effect = irreversible } }\ngate release { needs = [migrate]; approval { by = [\"ops\"] } }\nstage go { needs = [release]; run \"make\" }\n"
    good "gate release { approval { by = [\"ops\"] } }\nstage migrate { needs = [release]; run \"./migrate\" { effect = irreversible } }\n"

    PLAIN_SECRET = "CD0808" Error "secret is compared or computed with";
    "A secret may only be passed on. Comparing it, or computing with it, would show something about it."
    bad "secret token\nstage push {\n  when = token == \"abc\"\n  run \"push\" { env { TOKEN = token } }\n}\n"
    good "secret token\nstage push {\n  when = git.tag != \"\"\n  run \"push\" { env { TOKEN = token } }\n}\n"
}
