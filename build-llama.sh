#!/usr/bin/env bash
# Fetches and builds llama.cpp's llama-server for this machine. `build-llama.sh --help` explains all of it.
# It keeps to what bash 3.2 knows, because that is the bash of macOS.
set -euo pipefail

# One exact package whose git bundle holds the whole upstream source. The four lines change together:
# `npm view PACKAGE dist.integrity` and `git bundle list-heads package/llama/gitRelease.bundle` give them.
readonly PACKAGE='node-llama-cpp@3.22.1'
readonly PACKAGE_INTEGRITY='sha512-bltIipuWmc123H7tMIgDGKSsSrhmhlQYeVUC48XTjVW7XGJJiJJyCdlTMzQ/LiWoPkGDpcL4FviDpgw7qfTiDw=='
readonly PACKAGE_COMMIT='de3ff815ea7d559ee917f063901b8986f038abc6'
readonly PACKAGE_RELEASE='v0.5.0'
readonly UPSTREAM='https://github.com/ggml-org/llama.cpp'

usage() {
  cat <<HELP
Usage: build-llama.sh [auto|cpu|cuda|vulkan|rocm|metal] [--ref TAG | --source DIR]
                      [--ui | --no-ui] [--jobs N]

Builds llama.cpp's llama-server (Release, one file, tuned for this machine's CPU) and puts it where
llama-supervisor looks for it.

Back end (default: auto):
  auto     the first of the following that this machine can use; the choice and its reason are printed
  metal    macOS
  cuda     NVIDIA: needs the CUDA toolkit (nvcc)
  rocm     AMD: needs ROCm 6.1 or newer (hipcc, hipBLAS, rocBLAS)
  vulkan   any GPU with a Vulkan driver: needs glslc, the Vulkan loader's headers, SPIRV-Headers
  cpu      no GPU: always possible
A back end named here whose toolkit is missing is refused, with what to install.

Source (default: upstream $PACKAGE_RELEASE, commit ${PACKAGE_COMMIT:0:7}, from the npm package
$PACKAGE, checked against the integrity hash in this script):
  --ref TAG      clone this tag of $UPSTREAM instead
  --source DIR   build this checkout of llama.cpp as it is; one with changes is never taken from the cache
The source is kept in vendor/llama.cpp (in the cache folder where that cannot be written) and used again.

Web UI (default: built in where npm reaches its registry, and left out if that fails):
  --ui           build it in, and fail if that does not work
  --no-ui        leave it out, which saves about two minutes

Other:
  --jobs N       compile N files at a time (default: one per core, as far as memory allows)
  -h, --help     print this

Needed are cmake, git, a C++ compiler, ninja or make, Node with npm, tar. OpenSSL's headers (libssl-dev,
openssl-devel, brew's openssl@3) are optional: with them the binary speaks HTTPS, which downloading models
needs.

Finished binaries are kept in \${XDG_CACHE_HOME:-~/.cache}/llama-supervisor/builds, keyed by source commit,
back end, flags, compiler, CPU features and TLS. A cached one is tried before it is used, and then nothing is
fetched or compiled. Two links lead to the binary: vendor/llama.cpp/build/bin/llama-server here, and
builds/current in the cache. Removing the cache folder starts over.

CC, CXX, CFLAGS, CXXFLAGS, LDFLAGS, CUDA_PATH, ROCM_PATH and VULKAN_SDK are respected.

Exit status: 0 built or taken from the cache; 1 refused or failed; 2 wrong arguments; 129, 130 or 143
interrupted. After an interruption or a failure the compiler is ended and nothing half-made stays.
HELP
}

say() { printf '%s\n' "$*"; }
notice() { printf 'build-llama.sh: %s\n' "$*" >&2; }
die() {
  notice "$@"
  exit 1
}
die_usage() {
  notice "$@"
  notice 'build-llama.sh --help explains the arguments'
  exit 2
}
have() { command -v "$1" >/dev/null 2>&1; }

# --- Arguments ---------------------------------------------------------------------------------------

backend='' ref='' source_dir='' ui='' jobs=''

choose_ui() {
  [ -z "$ui" ] || [ "$ui" = "$1" ] || die_usage '--ui and --no-ui exclude each other'
  ui=$1
}

while [ $# -gt 0 ]; do
  argument=$1
  shift
  case $argument in
    --ref=* | --source=* | --jobs=*)
      set -- "${argument#*=}" "$@"
      argument=${argument%%=*}
      ;;
  esac
  case $argument in
    --ref | --source | --jobs)
      [ -n "${1:-}" ] || die_usage "$argument needs a value"
      case $argument in
        --ref) ref=$1 ;;
        --source) source_dir=$1 ;;
        --jobs) jobs=$1 ;;
      esac
      shift
      ;;
    auto | cpu | cuda | vulkan | rocm | metal)
      [ -z "$backend" ] || die_usage "two back ends given: $backend and $argument"
      backend=$argument
      ;;
    --ui) choose_ui ON ;;
    --no-ui) choose_ui OFF ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) die_usage "unknown argument: $argument" ;;
  esac
done

if [ -n "$ref" ] && [ -n "$source_dir" ]; then die_usage '--ref and --source exclude each other'; fi
case $ref in -*) die_usage "--ref needs a tag, not $ref" ;; esac
case $jobs in *[!0-9]* | 0*) die_usage "--jobs needs a number from 1 on, not $jobs" ;; esac

# --- Places, and leaving nothing behind --------------------------------------------------------------

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# The XDG specification says to ignore relative paths.
case ${XDG_CACHE_HOME:-} in
  /*) cache=$XDG_CACHE_HOME/llama-supervisor ;;
  *) cache=~/.cache/llama-supervisor ;;
esac
builds=$cache/builds
if ! mkdir -p "$builds" "$cache/logs" || [ ! -w "$builds" ]; then
  die "the cache folder $cache cannot be written; XDG_CACHE_HOME chooses another"
fi

lock=$builds/.lock
scratch=$(mktemp -d "${TMPDIR:-/tmp}/build-llama.XXXXXX")
# What is running and what is half-made, for the clean-up: empty when there is nothing.
job='' building='' filling='' locked=''

# shellcheck disable=SC2317 # The trap calls it.
clean_up() {
  # A second Ctrl-C must not leave half of the clean-up undone.
  trap '' HUP INT TERM
  stop_job
  rm -rf "$scratch" ${building:+"$building"} ${filling:+"$filling"}
  [ -z "$locked" ] || rm -f "$lock"
}
catch_signals() {
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
}
trap clean_up EXIT
catch_signals

# llama-server reads LLAMA_* as options, and the user's must not decide whether it answers `--version`.
# Within a git hook GIT_DIR and its like would turn every git command below to the wrong repository.
for name in "${!LLAMA_@}"; do unset "$name"; done
if have git; then
  for name in $(git rev-parse --local-env-vars); do unset "$name"; done
fi

# --- Running things ----------------------------------------------------------------------------------

# Progress goes to the script's own output while the output of what runs goes to the log.
exec 3>&1
log='' progress='' progress_tens=-1

# run SECONDS COMMAND...: the command's exit status, or 124 when it was ended at the limit (0 = no limit).
# The command gets its own process group, so that a signal to this script can end all that it started.
run() {
  local limit=$1 ends=$((SECONDS + $1)) polls=0 status=0
  shift
  set -m
  "$@" </dev/null 3>&- &
  job=$!
  set +m
  while kill -0 "$job" 2>/dev/null; do
    # Once a second, because reading the log at every poll would cost the compiler a noticeable share of a core.
    [ $((polls++ % 10)) -gt 0 ] || show_progress
    if [ "$limit" -gt 0 ] && [ "$SECONDS" -ge "$ends" ]; then
      stop_job
      return 124
    fi
    sleep 0.1
  done
  wait "$job" || status=$?
  job=''
  return "$status"
}

# Ninja gives compilers process groups of their own and ends them when it is told to stop, so it gets ten
# seconds to do that before it is killed.
stop_job() {
  local tries=0
  [ -n "$job" ] || return 0
  kill -TERM -- "-$job" 2>/dev/null || true
  while kill -0 -- "-$job" 2>/dev/null; do
    tries=$((tries + 1))
    if [ "$tries" -gt 100 ]; then
      kill -KILL -- "-$job" 2>/dev/null || true
      break
    fi
    sleep 0.1
  done
  wait "$job" 2>/dev/null || true
  job=''
}

# Ninja counts its steps as [12/204], make its percents as [ 12%].
show_progress() {
  local counted part whole percent
  [ -n "$progress" ] || return 0
  counted=$(tail -n 20 "$log" | sed -n -e 's|^\[ *\([0-9]*\)/\([0-9]*\)\].*|\1 \2|p' \
    -e 's|^\[ *\([0-9]*\)%\].*|\1 100|p' | tail -n 1)
  [ -n "$counted" ] || return 0
  read -r part whole <<<"$counted"
  [ "$whole" -gt 0 ] || return 0
  percent=$((part * 100 / whole))
  if [ -t 3 ]; then
    printf '\r%s: %3d %% (%d:%02d min)' "$progress" "$percent" $((SECONDS / 60)) $((SECONDS % 60)) >&3
  elif [ $((percent / 10)) -gt "$progress_tens" ]; then
    progress_tens=$((percent / 10))
    printf '%s: %d %%\n' "$progress" "$percent" >&3
  fi
}

logged() { run 0 "$@" >>"$log" 2>&1; }

# logged_with_progress LABEL COMMAND...
logged_with_progress() {
  local status=0
  progress=$1 progress_tens=-1
  shift
  logged "$@" || status=$?
  show_progress
  progress=''
  if [ -t 3 ]; then printf '\n' >&3; fi
  return "$status"
}

# answers BINARY: whether it runs on this machine; its version is then in $version.
answers() {
  version=''
  : >"$scratch/version"
  [ -x "$1" ] || return 1
  run 60 "$1" --version >"$scratch/version" 2>&1 || return 1
  version=$(sed -n 's/^version: //p' "$scratch/version" | sed -n 1p)
  [ -n "$version" ]
}

# digest ALGORITHM FILE: in base64, as npm writes integrity hashes.
digest() {
  if have openssl; then
    openssl dgst "-$1" -binary "$2" | openssl base64 -A
  elif have node; then
    node -e 'const [, algorithm, file] = process.argv;
      const bytes = require("fs").readFileSync(file);
      process.stdout.write(require("crypto").createHash(algorithm).update(bytes).digest("base64"));' "$1" "$2"
  else
    die 'neither openssl nor node is here to check a hash with; install Node'
  fi
}

# how_to_install TOOL...: one command for this machine's package manager, Debian's where none is known.
how_to_install() {
  local command='apt-get install' compiler=g++ ninja=ninja-build packages='' tool
  if have apt-get; then
    :
  elif have dnf; then
    command='dnf install' compiler=gcc-c++
  elif have zypper; then
    command='zypper install' compiler=gcc-c++ ninja=ninja
  elif have pacman; then
    command='pacman -S' compiler=gcc ninja=ninja
  elif have apk; then
    command='apk add' compiler='g++ linux-headers' ninja=ninja
  elif have brew; then
    command='brew install' compiler=llvm ninja=ninja
  fi
  for tool in "$@"; do
    case $tool in
      compiler) packages="$packages $compiler" ;;
      ninja) packages="$packages $ninja" ;;
      *) packages="$packages $tool" ;;
    esac
  done
  printf '%s%s' "$command" "$packages"
}

# --- What the machine has ----------------------------------------------------------------------------

# The same order in which cmake looks for them. CXX may hold arguments, as in 'ccache g++'.
first_of() {
  local name
  for name in "$@"; do
    if have "$name"; then
      printf '%s' "$name"
      return
    fi
  done
}
read -ra cc <<<"${CC:-$(first_of cc gcc clang)}"
read -ra cxx <<<"${CXX:-$(first_of c++ g++ clang++)}"
version_of() { [ $# -eq 0 ] || "$@" --version 2>&1 | sed -n 1p; }
compiler_works() { [ ${#cxx[@]} -gt 0 ] && "${cxx[@]}" --version >/dev/null 2>&1; }

# preprocesses CODE [FLAG...]: whether the C++ compiler takes it.
preprocesses() {
  local code=$1
  shift
  [ ${#cxx[@]} -gt 0 ] && "${cxx[@]}" "$@" -E -x c++ - >/dev/null 2>&1 <<<"$code"
}
has_header() {
  local header=$1
  shift
  preprocesses "$(printf '#if !__has_include(<%s>)\n#error missing\n#endif' "$header")" "$@"
}

# tool_path NAME FOLDER: where the tool is, on PATH or in a toolkit's folder that PATH often lacks.
tool_path() {
  if have "$1"; then
    command -v "$1"
  elif [ -x "$2/bin/$1" ]; then
    printf '%s' "$2/bin/$1"
  fi
}

# Each probe says what is wanting in $lacks (empty: the toolkit works), what GPU there is in $device, and what
# of the toolkit shapes the binary in $toolkit.

nvcc=''
probe_cuda() {
  lacks='' device='' toolkit=''
  nvcc=$(tool_path nvcc "${CUDA_PATH:-${CUDA_HOME:-/usr/local/cuda}}")
  if [ -z "$nvcc" ]; then
    lacks='no CUDA compiler (nvcc)'
  elif ! run 30 "$nvcc" --version >"$scratch/nvcc" 2>&1; then
    lacks="the CUDA compiler $nvcc does not run"
  fi
  # A driver that is broken or does not fit the kernel shows here, by failing or by hanging.
  if have nvidia-smi && run 20 nvidia-smi -L >"$scratch/gpus" 2>&1 && grep -q '^GPU ' "$scratch/gpus"; then
    device=$(sed -n -e 's/ (UUID.*//' -e 's/^GPU [0-9]*: //p' "$scratch/gpus" | sed -n 1p)
  fi
  if [ -z "$lacks" ]; then
    toolkit=$(sed -n 's/.*release \([^,]*\).*/nvcc \1/p' "$scratch/nvcc")
    if [ -n "$device" ] && run 20 nvidia-smi --query-gpu=compute_cap --format=csv,noheader >"$scratch/gpus" 2>&1; then
      toolkit="$toolkit for $(sort -u "$scratch/gpus" | tr '\n' ' ')"
    fi
  fi
}

gpu_targets=''
probe_rocm() {
  local major minor enumerator hipconfig folder=${ROCM_PATH:-/opt/rocm}
  lacks='' device='' toolkit=''
  hipconfig=$(tool_path hipconfig "$folder")
  enumerator=$(tool_path rocm_agent_enumerator "$folder")
  if [ -z "$(tool_path hipcc "$folder")" ] || [ -z "$hipconfig" ]; then
    lacks='no HIP compiler (hipcc, hipconfig)'
  elif ! run 30 "$hipconfig" --version >"$scratch/hip" 2>/dev/null; then
    lacks="$hipconfig does not run"
  else
    IFS=. read -r major minor _ <"$scratch/hip" || true
    case ${major:-x}${minor:-x} in *[!0-9]*) major=0 minor=0 ;; esac
    if [ "$major" -lt 6 ] || { [ "$major" -eq 6 ] && [ "$minor" -lt 1 ]; }; then
      lacks="ROCm $(cat "$scratch/hip") is older than 6.1"
    elif ! has_header hipblas/hipblas.h "-I$folder/include"; then
      lacks='no hipBLAS headers'
    elif ! has_header rocblas/rocblas.h "-I$folder/include"; then
      lacks='no rocBLAS headers'
    fi
  fi
  # The enumerator lists the CPU as gfx000.
  if [ -n "$enumerator" ] && run 20 "$enumerator" >"$scratch/gpus" 2>/dev/null; then
    gpu_targets=$(grep '^gfx' "$scratch/gpus" | grep -v '^gfx000' | sort -u | tr '\n' ';' || true)
    gpu_targets=${gpu_targets%;}
    device=$gpu_targets
  fi
  if [ -z "$lacks" ]; then
    toolkit="hip $(cat "$scratch/hip") for $gpu_targets"
    HIPCXX=${HIPCXX:-$("$hipconfig" -l)/clang}
    HIP_PATH=${HIP_PATH:-$("$hipconfig" -R)}
    export HIPCXX HIP_PATH
  fi
}

probe_vulkan() {
  local glslc flags=()
  lacks='' device='any GPU with a Vulkan driver' toolkit=''
  [ -z "${VULKAN_SDK:-}" ] || flags=("-I$VULKAN_SDK/include" "-L$VULKAN_SDK/lib")
  glslc=$(tool_path glslc "${VULKAN_SDK:-/usr}")
  if [ -z "$glslc" ]; then
    lacks='no shader compiler (glslc)'
  elif ! has_header vulkan/vulkan.h ${flags[@]+"${flags[@]}"}; then
    lacks='no Vulkan headers'
  elif ! has_header spirv/unified1/spirv.hpp ${flags[@]+"${flags[@]}"}; then
    lacks='no SPIRV-Headers'
  elif ! "${cxx[@]}" -x c++ - ${flags[@]+"${flags[@]}"} -lvulkan -o "$scratch/linked" \
    2>/dev/null <<<'int main() {}'; then
    lacks='no Vulkan loader to link with'
  else
    toolkit=$("$glslc" --version 2>&1 | sed -n 1p)
  fi
}

probe_metal() {
  lacks='' device='this Mac' toolkit=''
  [ "$(uname -s)" = Darwin ] || lacks='this is not macOS'
}

probe() {
  case $1 in
    cuda) probe_cuda ;;
    rocm) probe_rocm ;;
    vulkan) probe_vulkan ;;
    metal) probe_metal ;;
    cpu) lacks='' device='' toolkit='' ;;
  esac
}

refuse() {
  local install
  case $backend in
    cuda)
      install="Install NVIDIA's CUDA toolkit (Debian and Ubuntu: nvidia-cuda-toolkit). CUDA_PATH says where it is if not in /usr/local/cuda."
      ;;
    rocm)
      install="Install ROCm 6.1 or newer with hipBLAS and rocBLAS (Debian and Ubuntu: hipcc libhipblas-dev librocblas-dev rocminfo where they are that new, else AMD's own packages). ROCM_PATH says where it is if not in /opt/rocm."
      ;;
    vulkan)
      install="Install the Vulkan SDK (Debian and Ubuntu: glslc libvulkan-dev spirv-headers), or set VULKAN_SDK to one."
      ;;
    metal) install='Metal is there on macOS only; auto chooses what this machine has.' ;;
  esac
  die "cannot build for $backend: $lacks. $install"
}

choose_backend() {
  local candidate reasons=''
  if [ -n "$backend" ] && [ "$backend" != auto ]; then
    probe "$backend"
    [ -z "$lacks" ] || refuse
    say "Back end: $backend, as asked."
    return
  fi
  for candidate in metal cuda rocm vulkan; do
    probe "$candidate"
    if [ -z "$lacks" ] && [ -n "$device" ]; then
      backend=$candidate
      say "Back end: $backend, because its toolkit works and there is: $device."
      return
    fi
    if [ "$candidate" = cuda ] && [ -n "$lacks" ] && [ -n "$device" ]; then
      notice "there is an NVIDIA GPU ($device) but $lacks: install the CUDA toolkit (Debian and Ubuntu: nvidia-cuda-toolkit) to use it"
    fi
    reasons="$reasons${reasons:+, }$candidate: ${lacks:-no GPU for it}"
  done
  backend=cpu
  probe cpu
  say "Back end: cpu, because of nothing better here ($reasons)."
}

cpu_features() {
  uname -s -m
  if [ -r /proc/cpuinfo ]; then
    sed -n -e 's/^flags[[:space:]]*: //p' -e 's/^Features[[:space:]]*: //p' /proc/cpuinfo | sort -u
  else
    sysctl machdep.cpu.brand_string hw.optional 2>/dev/null || true
  fi
}

tls=OFF openssl_root=''
probe_tls() {
  local flags=()
  # Homebrew keeps OpenSSL out of the compiler's default folders.
  if [ "$(uname -s)" = Darwin ] && have brew; then
    openssl_root=$(brew --prefix openssl@3 2>/dev/null || true)
    [ -z "$openssl_root" ] || flags=("-I$openssl_root/include")
  fi
  # llama.cpp takes no OpenSSL before 3.0.
  if preprocesses "$(printf '#include <openssl/ssl.h>\n#if OPENSSL_VERSION_NUMBER < 0x30000000L\n#error old\n#endif')" \
    ${flags[@]+"${flags[@]}"}; then
    tls=ON
  fi
}

default_jobs() {
  local cores memory_gib each=1
  cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
  # The largest files take about 1 GiB each to compile, and 2 with a GPU compiler.
  case $backend in cuda | rocm) each=2 ;; esac
  memory_gib=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo 2>/dev/null || true)
  memory_gib=$((${memory_gib:-$((cores * each * 1048576))} / 1048576))
  jobs=$cores
  [ $((jobs * each)) -le "$memory_gib" ] || jobs=$((memory_gib / each))
  [ "$jobs" -ge 1 ] || jobs=1
}

# --- The source --------------------------------------------------------------------------------------

git_in() {
  local folder=$1
  shift
  # A checkout may belong to another user: it is only read, and git runs no program that it names.
  git -c safe.directory='*' -c core.fsmonitor=false -C "$folder" "$@"
}
# head_of FOLDER: the commit checked out there; nothing for a folder that is inside some other checkout.
head_of() {
  if [ -e "$1/.git" ] && have git; then git_in "$1" rev-parse -q --verify HEAD 2>/dev/null || true; fi
}
is_changed() {
  local changes
  # A checkout that git cannot judge counts as changed.
  changes=$(git_in "$1" status --porcelain 2>&1) || return 0
  [ -n "$changes" ]
}

vendor=$repo/vendor/llama.cpp
if ! mkdir -p "$vendor" 2>/dev/null || [ ! -w "$repo/vendor" ] || [ ! -w "$vendor" ]; then
  vendor=$cache/vendor/llama.cpp
fi

commit='' changed='' source_name=''
resolve_source() {
  local tagged
  if [ -n "$source_dir" ]; then
    if [ ! -f "$source_dir/CMakeLists.txt" ] || [ ! -f "$source_dir/include/llama.h" ]; then
      die "--source $source_dir is not a checkout of llama.cpp"
    fi
    source_dir=$(cd "$source_dir" && pwd -P)
    source_name=$source_dir
    commit=$(head_of "$source_dir")
    if [ -z "$commit" ]; then
      commit=unknown changed=yes
    elif is_changed "$source_dir"; then
      changed=yes
    fi
  elif [ -n "$ref" ]; then
    source_name=$ref
    have git || die "git is missing, which --ref needs. Install it: $(how_to_install git)"
    tagged=$(git_in "$vendor" rev-parse -q --verify "refs/tags/$ref^{commit}" 2>/dev/null || true)
    commit=$(head_of "$vendor")
    if [ -z "$commit" ] || [ "$commit" != "$tagged" ]; then
      run 60 git ls-remote "$UPSTREAM" "refs/tags/$ref" "refs/tags/$ref^{}" >"$scratch/tags" 2>"$scratch/errors" ||
        die "$UPSTREAM cannot be reached: $(sed -n '$p' "$scratch/errors")"
      # An annotated tag's own hash comes first, the commit it stands for second.
      commit=$(sed -n '$s/[[:space:]].*//p' "$scratch/tags")
      [ -n "$commit" ] || die "$UPSTREAM has no tag $ref"
    fi
  else
    source_name=$PACKAGE_RELEASE
    commit=$PACKAGE_COMMIT
  fi
}

fetch_package() {
  local archive integrity
  have npm || die "npm is missing, which fetches llama.cpp's source. Install Node with npm, or use --source DIR."
  say "Fetching llama.cpp $PACKAGE_RELEASE (npm package $PACKAGE, about 35 MB)."
  run 1800 npm pack --silent --pack-destination "$1" "$PACKAGE" >"$scratch/packed" 2>"$scratch/errors" || {
    cat "$scratch/errors" >&2
    die "npm cannot fetch $PACKAGE. Without a network: --source DIR builds a checkout of llama.cpp that you have."
  }
  archive=$1/$(sed -n '$p' "$scratch/packed")
  integrity=sha512-$(digest sha512 "$archive")
  [ "$integrity" = "$PACKAGE_INTEGRITY" ] ||
    die "$PACKAGE is not what was pinned and is not used: its integrity is $integrity, not $PACKAGE_INTEGRITY"
  tar -xzf "$archive" -C "$1" package/llama/gitRelease.bundle
  run 600 git clone --quiet "$1/package/llama/gitRelease.bundle" "$1/llama.cpp" 2>"$scratch/errors" || {
    cat "$scratch/errors" >&2
    die "the source in $PACKAGE cannot be unpacked"
  }
  # The bundle is a temporary file, so it is no place to fetch from later.
  git_in "$1/llama.cpp" remote remove origin
}

fetch_ref() {
  say "Cloning $UPSTREAM at $ref."
  run 1800 git -c advice.detachedHead=false clone --quiet --depth 1 --branch "$ref" "$UPSTREAM" "$1/llama.cpp" \
    2>"$scratch/errors" || {
    cat "$scratch/errors" >&2
    die "cannot clone $UPSTREAM at $ref"
  }
}

# Only what this script put into vendor/llama.cpp may be replaced: an unchanged checkout, or nothing.
vendor_is_replaceable() {
  local entry
  if [ -n "$(head_of "$vendor")" ]; then
    if is_changed "$vendor"; then return 1; else return 0; fi
  fi
  for entry in "$vendor"/* "$vendor"/.[!.]*; do
    case ${entry##*/} in '*' | '.[!.]*' | .gitkeep | build) ;; *) return 1 ;; esac
  done
}

fill_vendor() {
  vendor_is_replaceable ||
    die "$vendor holds changes or files that did not come from here. Build them with --source $vendor, or remove them."
  [ "$(head_of "$vendor")" != "$commit" ] || return 0
  mkdir -p "$vendor"
  remove_abandoned "$(dirname "$vendor")/.filling"
  filling=$(mktemp -d "$(dirname "$vendor")/.filling.$$.XXXXXX")
  # The folder ignores itself, so that a `git add` of the user at the wrong moment does not take it in.
  echo '*' >"$filling/.gitignore"
  if [ -n "$ref" ]; then fetch_ref "$filling"; else fetch_package "$filling"; fi
  [ "$(head_of "$filling/llama.cpp")" = "$commit" ] ||
    die "the fetched source is at commit $(head_of "$filling/llama.cpp"), not at $commit, and is not used"
  touch "$filling/llama.cpp/.gitkeep"
  printf '.gitkeep\n/build/\n' >>"$filling/llama.cpp/.git/info/exclude"
  # No signal may come between the renames: the folder changes from the old content to the whole new one.
  trap '' HUP INT TERM
  [ ! -e "$vendor/build" ] || mv "$vendor/build" "$filling/llama.cpp/build"
  mv "$vendor" "$filling/replaced"
  mv "$filling/llama.cpp" "$vendor"
  catch_signals
  rm -rf "$filling"
  filling=''
}

# --- The cache ---------------------------------------------------------------------------------------

# remove_abandoned PREFIX: the PREFIX.PID.* folders of runs that were killed before they could clean up.
remove_abandoned() {
  local folder pid
  for folder in "$1".*; do
    pid=${folder#"$1".}
    # A compiler that outlived a killed run may still write there; then the next run clears it away.
    kill -0 "${pid%%.*}" 2>/dev/null || rm -rf "$folder" || true
  done
}

# A process id can come back as another program.
is_running_build() {
  kill -0 "$1" 2>/dev/null || return 1
  have ps || return 0
  case $(ps -p "$1" -o args=) in *build-llama*) ;; *) return 1 ;; esac
}

# One build at a time per user: more would only share the cores, and they share vendor/. The lock is a link
# whose target is the holder's process id, because making a link is atomic and needs no tool.
take_lock() {
  local holder told=''
  until ln -s "$$" "$lock" 2>/dev/null; do
    holder=$(readlink "$lock") || continue
    if is_running_build "$holder"; then
      [ -n "$told" ] || say "Another build is running (process $holder): waiting for it."
      told=yes
      sleep 0.5
    elif mv "$lock" "$lock.$$" 2>/dev/null; then
      # Of several that find a dead holder's lock one moves it away; a slower one may have got the next
      # holder's instead, and puts it back.
      [ "$(readlink "$lock.$$")" = "$holder" ] || mv "$lock.$$" "$lock"
      rm -f "$lock.$$"
    fi
  done
  locked=yes
}

# describe_build ON|OFF: what decides the binary, in $flags and the file $scratch/build-info, and the
# binary's place, $binary, named after the hash of that.
flags=() binary='' key=''
describe_build() {
  local number
  flags=(
    -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF
    -DLLAMA_USE_PREBUILT_UI=OFF "-DLLAMA_BUILD_UI=$1" "-DLLAMA_OPENSSL=$tls"
  )
  [ -z "$openssl_root" ] || flags+=("-DOPENSSL_ROOT_DIR=$openssl_root")
  # Upstream's build tags are counts of commits, which a clone of one commit cannot count.
  number=${ref#b}
  case $number in "$ref" | *[!0-9]*) ;; *) flags+=("-DLLAMA_BUILD_NUMBER=$number") ;; esac
  case $backend in
    cuda)
      flags+=(-DGGML_CUDA=ON "-DCMAKE_CUDA_COMPILER=$nvcc")
      # Without a GPU to ask there is no native architecture.
      [ -n "$device" ] || flags+=(-DCMAKE_CUDA_ARCHITECTURES=all-major)
      ;;
    rocm)
      flags+=(-DGGML_HIP=ON)
      [ -z "$gpu_targets" ] || flags+=("-DGPU_TARGETS=$gpu_targets")
      ;;
    vulkan) flags+=(-DGGML_VULKAN=ON) ;;
    metal) flags+=(-DGGML_METAL=ON) ;;
    cpu) flags+=(-DGGML_METAL=OFF) ;;
  esac
  cpu_features >"$scratch/cpu"
  {
    say "commit: $commit"
    [ -z "$changed" ] || say "source with changes: $source_dir"
    say "back end: $backend"
    say "toolkit: $toolkit"
    say "cmake: ${flags[*]}"
    say "C compiler: ${cc[*]-}, $(version_of ${cc[@]+"${cc[@]}"})"
    say "C++ compiler: ${cxx[*]-}, $(version_of ${cxx[@]+"${cxx[@]}"})"
    say "environment: ${CFLAGS:-} | ${CXXFLAGS:-} | ${LDFLAGS:-}"
    say "cpu: $(digest sha256 "$scratch/cpu")"
  } >"$scratch/build-info"
  key=${commit:0:7}${changed:+-changed}-$backend
  [ "$1" = ON ] || key=$key-no-ui
  key=$key-$(digest sha256 "$scratch/build-info" | tr -d '+/=' | cut -c 1-12)
  binary=$builds/$key/llama-server
}

is_cached() { [ -z "$changed" ] && answers "$binary"; }

replace_link() {
  ln -s "$1" "$2.$$"
  mv -f "$2.$$" "$2"
}

finish() {
  local vendor_bin=$repo/vendor/llama.cpp/build/bin
  replace_link "$key/llama-server" "$builds/current"
  if mkdir -p "$vendor_bin" 2>/dev/null && [ -w "$vendor_bin" ]; then
    if [ -e "$vendor_bin/llama-server" ] && [ ! -L "$vendor_bin/llama-server" ]; then
      notice "$vendor_bin/llama-server is not a link of this script's and stays as it is"
    else
      replace_link "$binary" "$vendor_bin/llama-server"
    fi
  fi
  say "llama-server $version"
  say "$binary"
}

# --- The build ---------------------------------------------------------------------------------------

require_tools() {
  local missing='' names=()
  need() {
    missing="$missing${missing:+, }$1"
    names+=("$2")
  }
  have cmake || need cmake cmake
  compiler_works || need 'a C++ compiler' compiler
  have git || need git git
  have ninja || have make || need 'ninja or make' ninja
  [ "$ui" != ON ] || have npm || need 'npm (for --ui)' npm
  [ -z "$missing" ] || die "missing: $missing. Install with: $(how_to_install "${names[@]}")"
}

registry_answers() {
  have npm && run 12 npm view "$PACKAGE" version --fetch-retries=0 --fetch-timeout=8000 >/dev/null 2>&1
}

build_failed() {
  tail -n 40 "$log" >&2
  die "$1 failed: the last lines are above, all of them in $log"
}

configure() {
  local generator='Unix Makefiles'
  if have ninja; then generator=Ninja; fi
  rm -rf ${building:+"$building"}
  building=$(mktemp -d "$builds/.building.$$.XXXXXX")
  log=$cache/logs/build-$key.log
  : >"$log"
  say "Building llama-server from $source_name (${commit:0:7}) for $backend; log: $log"
  logged cmake -S "$source_dir" -B "$building" -G "$generator" "${flags[@]}" || build_failed 'configuring with cmake'
}

# Whether the UI's files were made. Without them upstream's build goes on, with only a warning.
build_ui() {
  # Before upstream had this script the files were part of its source.
  [ -f "$source_dir/scripts/ui-assets.cmake" ] || return 0
  say 'Building the web UI with npm (about two minutes).'
  # All that the UI is built with are development dependencies, which npm may have been told to leave out.
  logged env npm_config_include=dev cmake --build "$building" --target llama-ui-assets || return 1
  [ -f "$building/tools/ui/dist/index.html" ] || [ -f "$source_dir/tools/ui/dist/index.html" ]
}

compile() {
  [ -n "$jobs" ] || default_jobs
  export NINJA_STATUS='[%f/%t] '
  logged_with_progress "Compiling, $jobs at a time" \
    cmake --build "$building" --target llama-server --parallel "$jobs" || build_failed compiling
  if ! answers "$building/bin/llama-server"; then
    cat "$scratch/version" >>"$log"
    build_failed 'the new llama-server --version'
  fi
  # No signal may come between these renames, and the binary is the last of them.
  trap '' HUP INT TERM
  mkdir -p "$builds/$key"
  mv -f "$scratch/build-info" "$builds/$key/build-info"
  mv -f "$building/bin/llama-server" "$binary"
  catch_signals
}

# Leaves $binary ready. Whether the UI can be had costs a question to the registry, and is asked only when
# neither --ui nor --no-ui decides it.
build() {
  local with_ui=${ui:-ON}
  require_tools
  if [ -z "$ui" ] && ! registry_answers; then
    notice 'npm does not reach its registry, so the web UI is left out (--ui insists on it)'
    with_ui=OFF
    describe_build OFF
    if is_cached; then return; fi
  fi
  take_lock
  # Whoever held the lock may just have built the same.
  if is_cached; then return; fi
  if [ -z "$changed" ] && [ -e "$binary" ]; then
    notice "the cached $binary does not run here and is built again"
  fi
  if [ "$tls" = OFF ]; then
    notice "OpenSSL's headers are missing: this llama-server will not speak HTTPS, which downloading models needs." \
      'To have it, install libssl-dev (Debian, Ubuntu), openssl-devel (Fedora, SUSE) or openssl@3 (brew) and run this again.'
  fi
  if [ "$backend" = cuda ] && [ -z "$device" ]; then
    notice 'no NVIDIA driver answers here: building for every GPU generation, which takes long'
  fi
  remove_abandoned "$builds/.building"
  if [ -z "$source_dir" ]; then
    fill_vendor
    source_dir=$vendor
  fi
  configure
  if [ "$with_ui" = ON ] && ! build_ui; then
    [ "$ui" != ON ] || build_failed 'building the web UI'
    notice "the web UI could not be built ($log) and is left out"
    describe_build OFF
    if is_cached; then return; fi
    configure
  fi
  compile
}

# Bash reads a script as it goes. In braces the end is read before the build starts, so that an update of this
# file during the build (a `git pull`) does not change what is running.
{
  choose_backend
  probe_tls
  resolve_source
  describe_build "${ui:-ON}"
  if is_cached; then
    say 'Taken from the cache.'
  else
    build
  fi
  finish
  exit 0
}
