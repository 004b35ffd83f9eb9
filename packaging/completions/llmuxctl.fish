# SPDX-License-Identifier: MIT

# The models' names, of a llmuxd that runs; none is started for it.
function __llmuxctl_models
    busctl --auto-start=no --json=short call org.llmux /Manager org.llmux.Manager ListModels \
        2>/dev/null |
        sed -e 's/^.*"data":\[\[\[//' -e 's/\],\[/\n/g' |
        sed -n 's/^"\(.*\)","[a-z]*","\/Model\/.*/\1/p'
end

function __llmuxctl_jobs
    busctl --auto-start=no --json=short call org.llmux /Manager org.llmux.Manager ListJobs \
        2>/dev/null | grep -o '"/Job/[0-9]*"' | tr -dc '0-9\n'
end

# The verb and what follows it up to the cursor, without options and their values.
function __llmuxctl_words
    set -l value no
    for word in (commandline -opc)[2..-1]
        if test $value = yes
            set value no
            continue
        end
        switch $word
            case -H --host -c --config
                set value yes
            case '-*'
            case '*'
                echo $word
        end
    end
end

function __llmuxctl_no_verb
    not count (__llmuxctl_words) >/dev/null
end

# Not __fish_seen_subcommand_from: it takes any word of the line for the verb.
function __llmuxctl_verb
    set -l words (__llmuxctl_words)
    count $words >/dev/null; and contains -- $words[1] $argv
end

# The verb is one of these, and nothing follows it yet.
function __llmuxctl_last_verb
    set -l words (__llmuxctl_words)
    test (count $words) -eq 1; and contains -- $words[1] $argv
end

complete -c llmuxctl -f
complete -c llmuxctl -n __llmuxctl_no_verb -l version -d 'print the version'
complete -c llmuxctl -s h -l help -d 'print a short help'
complete -c llmuxctl -l json -d 'print JSON'
complete -c llmuxctl -s H -l host -x -a '(__fish_complete_user_at_hosts)' -d 'another host, over ssh'
complete -c llmuxctl -n __llmuxctl_no_verb -a status -d 'a line for each model'
complete -c llmuxctl -n __llmuxctl_no_verb -a top -d 'models and jobs, live'
complete -c llmuxctl -n __llmuxctl_no_verb -a show -d 'all that is known of a model'
complete -c llmuxctl -n __llmuxctl_no_verb -a switch -d 'make a model serve'
complete -c llmuxctl -n __llmuxctl_no_verb -a preload -d 'make a model serve once nobody else wants its place'
complete -c llmuxctl -n __llmuxctl_no_verb -a pin -d 'keep a model from leaving for another one'
complete -c llmuxctl -n __llmuxctl_no_verb -a unpin -d 'let a model leave for another one'
complete -c llmuxctl -n __llmuxctl_no_verb -a checkpoint -d 'drain a model and write it to disk'
complete -c llmuxctl -n __llmuxctl_no_verb -a park -d 'drain a model and freeze it in memory'
complete -c llmuxctl -n __llmuxctl_no_verb -a stop -d 'drain a model and end it, without a checkpoint'
complete -c llmuxctl -n __llmuxctl_no_verb -a warmup -d 'start each model once and keep a checkpoint of it'
complete -c llmuxctl -n __llmuxctl_no_verb -a jobs -d 'a line for each job that runs'
complete -c llmuxctl -n __llmuxctl_no_verb -a cancel -d 'have jobs give up'
complete -c llmuxctl -n __llmuxctl_no_verb -a logs -d 'the journal of a model\'s unit'
complete -c llmuxctl -n __llmuxctl_no_verb -a reload -d 'have llmuxd read its configuration again'
complete -c llmuxctl -n __llmuxctl_no_verb -a check -d 'whether this host has what llmuxd needs'
complete -c llmuxctl -n __llmuxctl_no_verb -a config -d 'what is wrong, what is in force'
complete -c llmuxctl -n __llmuxctl_no_verb -a version -d 'of llmuxctl, and of the llmuxd that runs'
complete -c llmuxctl -n '__llmuxctl_last_verb show switch preload pin unpin checkpoint park stop logs; or __llmuxctl_verb warmup' -a '(__llmuxctl_models)'
complete -c llmuxctl -n '__llmuxctl_verb cancel' -a '(__llmuxctl_jobs)'
complete -c llmuxctl -n '__llmuxctl_last_verb config' -a 'check show'
complete -c llmuxctl -n '__llmuxctl_verb logs' -s f -l follow -d 'go on as lines come'
complete -c llmuxctl -n '__llmuxctl_verb warmup' -l tune -d 'measure first what is best let go of'
complete -c llmuxctl -n '__llmuxctl_verb check' -l fix -d 'do what is safe to do'
complete -c llmuxctl -n '__llmuxctl_verb check' -s y -l yes -d 'do not ask'
complete -c llmuxctl -n '__llmuxctl_verb check config' -s c -l config -r -F -d 'this configuration'
