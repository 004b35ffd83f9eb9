# SPDX-License-Identifier: MIT
# bash completion for llmuxctl

# The models' names, a line each, of a llmuxd that runs; none is started for it.
_llmuxctl_models() {
    busctl --auto-start=no --json=short call org.llmux /Manager org.llmux.Manager ListModels \
        2>/dev/null |
        sed -e 's/^.*"data":\[\[\[//' -e 's/\],\[/\n/g' |
        sed -n 's/^"\(.*\)","[a-z]*","\/Model\/.*/\1/p'
}

_llmuxctl_jobs() {
    busctl --auto-start=no --json=short call org.llmux /Manager org.llmux.Manager ListJobs \
        2>/dev/null | grep -o '"/Job/[0-9]*"' | tr -dc '0-9\n'
}

# The words up to the cursor. readline splits at @, : and = too (COMP_WORDBREAKS), but a host and a
# model's name are one word each. Sets `given` and `current`.
_llmuxctl_words() {
    local line=${COMP_LINE:0:COMP_POINT} index word
    given=('')
    for ((index = 0; index <= COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        if [[ $line == [[:space:]]* ]]; then
            line=${line#"${line%%[![:space:]]*}"}
            given+=('')
        fi
        # The cursor may be inside of the last one.
        if ((index == COMP_CWORD)); then word=$line; fi
        line=${line#"$word"}
        given[-1]+=$word
    done
    current=${given[-1]}
}

_llmuxctl() {
    local given=() current word words=() verb='' skip=''
    _llmuxctl_words
    local before=${given[-2]-}
    for word in "${given[@]:1:${#given[@]}-2}"; do
        if [[ $skip ]]; then
            skip=''
        elif [[ $word == -H || $word == --host ]]; then
            skip=yes
        elif [[ $word != -* ]]; then
            verb=${verb:+$verb }$word
        fi
    done
    # What readline leaves as it is: it replaces only what follows the last break.
    local breaks=${COMP_WORDBREAKS//[^@:=]/} broken=''
    if [[ $breaks ]]; then broken=${current%"${current##*[$breaks]}"}; fi
    local user=${current%"${current##*@}"}
    case $before in
        -H | --host)
            mapfile -t COMPREPLY < <(
                compgen -P "${user#"$broken"}" -A hostname -- "${current##*@}"
            )
            return
            ;;
        -c | --config)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$current")
            return
            ;;
    esac
    local common=(--json --host --help)
    case $verb in
        '')
            words=(status top show switch preload pin unpin checkpoint park stop warmup jobs cancel logs reload check
                   config version)
            if [[ $current == -* ]]; then words=("${common[@]}" --version); fi
            ;;
        warmup | warmup\ *)
            if [[ $current == -* ]]; then
                words=(--tune "${common[@]}")
            else
                mapfile -t words < <(_llmuxctl_models)
            fi
            ;;
        show | switch | preload | pin | unpin | checkpoint | park | stop)
            if [[ $current == -* ]]; then
                words=("${common[@]}")
            else
                mapfile -t words < <(_llmuxctl_models)
            fi
            ;;
        cancel | cancel\ *)
            if [[ $current == -* ]]; then
                words=("${common[@]}")
            else
                mapfile -t words < <(_llmuxctl_jobs)
            fi
            ;;
        logs)
            if [[ $current == -* ]]; then
                words=(--follow "${common[@]}")
            else
                mapfile -t words < <(_llmuxctl_models)
            fi
            ;;
        check) words=(--fix --yes --config --json --help) ;;
        config\ check | config\ show) words=(--config --json --help) ;;
        config) words=(check show) ;;
        status | top | jobs | reload | version) words=("${common[@]}") ;;
    esac
    COMPREPLY=()
    for word in "${words[@]}"; do
        # Not compgen -W: it would expand what a name has in it.
        if [[ $word == "$current"* ]]; then
            COMPREPLY+=("$(printf '%q' "${word#"$broken"}")")
        fi
    done
}

complete -F _llmuxctl llmuxctl
