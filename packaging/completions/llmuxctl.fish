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

complete -c llmuxctl -f
complete -c llmuxctl -n __fish_use_subcommand -l version -d 'print the version'
complete -c llmuxctl -s h -l help -d 'print a short help'
complete -c llmuxctl -l json -d 'print JSON'
complete -c llmuxctl -s H -l host -x -a '(__fish_complete_user_at_hosts)' -d 'another host, over ssh'
complete -c llmuxctl -n __fish_use_subcommand -a status -d 'a line for each model'
complete -c llmuxctl -n __fish_use_subcommand -a top -d 'models and jobs, live'
complete -c llmuxctl -n __fish_use_subcommand -a show -d 'all that is known of a model'
complete -c llmuxctl -n __fish_use_subcommand -a switch -d 'make a model serve'
complete -c llmuxctl -n __fish_use_subcommand -a preload -d 'make a model serve once nobody else wants its place'
complete -c llmuxctl -n __fish_use_subcommand -a pin -d 'keep a model from leaving for another one'
complete -c llmuxctl -n __fish_use_subcommand -a unpin -d 'let a model leave for another one'
complete -c llmuxctl -n __fish_use_subcommand -a checkpoint -d 'drain a model and write it to disk'
complete -c llmuxctl -n __fish_use_subcommand -a park -d 'drain a model and freeze it in memory'
complete -c llmuxctl -n __fish_use_subcommand -a stop -d 'drain a model and end it, without a checkpoint'
complete -c llmuxctl -n __fish_use_subcommand -a warmup -d 'start each model once and keep a checkpoint of it'
complete -c llmuxctl -n __fish_use_subcommand -a jobs -d 'a line for each job that runs'
complete -c llmuxctl -n __fish_use_subcommand -a cancel -d 'have jobs give up'
complete -c llmuxctl -n __fish_use_subcommand -a logs -d 'the journal of a model\'s unit'
complete -c llmuxctl -n __fish_use_subcommand -a reload -d 'have llmuxd read its configuration again'
complete -c llmuxctl -n __fish_use_subcommand -a check -d 'whether this host has what llmuxd needs'
complete -c llmuxctl -n __fish_use_subcommand -a config -d 'what is wrong, what is in force'
complete -c llmuxctl -n __fish_use_subcommand -a version -d 'of llmuxctl, and of the llmuxd that runs'
complete -c llmuxctl -n '__fish_seen_subcommand_from show switch preload pin unpin checkpoint park stop warmup logs' -a '(__llmuxctl_models)'
complete -c llmuxctl -n '__fish_seen_subcommand_from cancel' -a '(__llmuxctl_jobs)'
complete -c llmuxctl -n '__fish_seen_subcommand_from config' -a 'check show'
complete -c llmuxctl -n '__fish_seen_subcommand_from logs' -s f -l follow -d 'go on as lines come'
complete -c llmuxctl -n '__fish_seen_subcommand_from check' -l fix -d 'do what is safe to do'
complete -c llmuxctl -n '__fish_seen_subcommand_from check' -s y -l yes -d 'do not ask'
complete -c llmuxctl -n '__fish_seen_subcommand_from check config' -s c -l config -r -F -d 'this configuration'
