import { constants } from 'node:os';
import type { ChildExit } from './child-process.js';
import { tellingLine } from './telling-line.js';

/** How a child ended whose memory ran out. */
export interface OutOfMemory {
  /** Whose memory: that of a GPU or another accelerator, or the machine's own. */
  readonly kind: 'device' | 'host';
  /** What tells so: the child's own line, or the kernel's account. */
  readonly words: string;
}

export interface Death {
  readonly exit: ChildExit;
  readonly phase: 'loading' | 'running';
  /** What it wrote last, oldest line first. */
  readonly lastLines: readonly string[];
  /**
   * What the kernel says when it has killed one of our processes for want of memory (`KillWatch.claim`). Asked only of a
   * child that SIGKILL has ended: that alone says nothing, since anybody can send it.
   */
  readonly kernelKill: () => string | undefined;
}

/** What speaks of memory and is not the end of it: the child made do without, or something else is wrong. */
const MADE_DO = [
  /pinned memory/, // ggml-cuda, ggml-vulkan, ggml-sycl, ggml-cann: host memory that is mapped for the device
  /mlock/, // src/llama-mmap.cpp: the model can be swapped out then
  /prompt cache state/, // tools/server/server-task.cpp: the cache is made smaller
  /skipping reorder|host memory fallback/, // ggml-sycl.cpp
  /static TLS block/, // glibc: too many libraries, not too little memory
  /bad_alloc error while reading/, // ggml/src/gguf.cpp: in a damaged file a length can be anything
];

/** What llama-server does not call an error: from its log's prefix (common/log.cpp). */
const NO_ERROR = /^[\d.]+ [DIW] /;

/** Before a second try without what did not fit (src/llama-context.cpp): what failed until then did not end it. */
const SECOND_TRY = /retrying without pipeline parallelism/;

/** A device that refuses memory for another reason: then all that follows from it is none of memory (ggml-cuda.cu). */
const OTHER_REASON = /cudaMalloc failed: (?!out of memory)/;

type Words = readonly (readonly [kind: OutOfMemory['kind'], words: RegExp])[];

/** With these a process ends, whatever it was doing. */
const LAST_WORDS: Words = [
  // ggml-cuda.cu, `ggml_cuda_error`; its names are those of the build, the texts those of CUDA, HIP, MUSA and cuBLAS.
  ['device', /\b(?:CUDA|ROCm|MUSA) error: .*(?:out of memory|ALLOC_FAILED|resource allocation failed)/i],
  // ggml-metal-context.m tells what Metal says. It does not end then, but computes nothing any more.
  ['device', /\berror: Insufficient Memory \(|CallbackErrorOutOfMemory/],
  // vulkan.hpp, where nobody catches it: while computing.
  ['device', /terminat.*vk::OutOfDeviceMemoryError|what\(\):.*ErrorOutOfDeviceMemory/],
  ['host', /terminat.*vk::OutOfHostMemoryError|what\(\):.*ErrorOutOfHostMemory/],
  // ggml-sycl.cpp tells what the runtime says, and exits or aborts. Of the older runtimes the names begin otherwise.
  ['device', /_ERROR_OUT_OF_DEVICE_MEMORY\b/],
  ['host', /_ERROR_OUT_OF_HOST_MEMORY\b/],
  // ggml-opencl.cpp: CL_MEM_OBJECT_ALLOCATION_FAILURE, and CL_OUT_OF_HOST_MEMORY.
  ['device', /\bggml_opencl: .* error -4 at |temp (?:up|down)load buffer alloc failed/],
  ['host', /\bggml_opencl: .* error -6 at /],
  // ggml.c, `ggml_malloc`, `ggml_calloc`, `ggml_init`.
  ['host', /\bggml_[mc]alloc: failed to allocate|GGML_ASSERT\(ctx->mem_buffer != NULL\)/],
  // libstdc++ and libc++, where nobody catches it.
  ['host', /(?:terminat.*|what\(\):\s*)std::bad_alloc/],
];

/**
 * With these a load fails. While a child serves they fail one request, and the child goes on: they may stand in its last
 * lines when it ends much later for another reason.
 */
const FAILED_ALLOCATIONS: Words = [
  ['device', /cudaMalloc failed: out of memory/], // ggml-cuda.cu, for HIP and MUSA too
  ['device', /aclrtMalloc failed/], // ggml-cann.cpp
  ['device', /\bggml_vulkan: (?:Device m|M)emory allocation of size \d+ failed/], // ggml-vulkan-buffers.cpp
  ['device', /\bErrorOutOfDeviceMemory\b/],
  ['device', /failed to allocate Metal buffer|error: failed to allocate buffer, size = /], // ggml-metal.cpp, …-device.m
  ['device', /can't allocate \d+ Bytes of memory on device/], // ggml-sycl.cpp
  ['device', /failed to allocate [\d.]+ MiB \(err=/], // ggml-opencl.cpp
  ['host', /can't allocate \d+ Bytes of memory on host/], // ggml-sycl.cpp
  ['host', /\bErrorOutOfHostMemory\b/],
  ['host', /insufficient memory \(attempted to allocate/], // ggml.c, `ggml_aligned_malloc`
  // `mmap` of the model (src/llama-mmap.cpp), the loader of libraries, a wrapper's fork.
  ['host', /\bCannot allocate memory\b/],
  ['host', /\bstd::bad_alloc\b/], // src/llama.cpp: error loading model
  // ggml-alloc.c and src/llama-model.cpp name the kind of buffer: `CPU_Mapped`, `CUDA_Host`, `Vulkan0` …
  ['host', /(?:failed|unable) to allocate (?:CPU\w*|AMX|\w+_Host|HBM) buffer/],
  ['host', /failed to allocate (?:output )?buffer of size/], // ggml-backend.cpp, src/llama-context.cpp
  ['device', /(?:failed|unable) to allocate [A-Z]\S* buffer/],
  // What comes of those before, should they be missing: src/llama-kv-cache.cpp, llama-memory-recurrent.cpp,
  // llama-context.cpp, llama-adapter.cpp.
  ['host', /failed to allocate (?:buffer for|compute (?:pp |tg )?buffers)/],
];

/** By these a process ends itself, or by what it does. All others come from outside, or are nothing of memory. */
const OWN_DOING: ReadonlySet<string> = new Set(['SIGABRT', 'SIGSEGV', 'SIGBUS']);

const WHILE_LOADING: Words = [...FAILED_ALLOCATIONS, ...LAST_WORDS];

/**
 * Whether a child ended because memory ran out, by the kernel's account and by its own words.
 *
 * A child that was killed is judged by the kernel's account alone, not by the signal, and not by words either: they
 * may be old, and are not why somebody sent it. Which words count of one that ended by itself depends on what it was
 * doing: see above. Words are llama.cpp's as of v0.5.0; where it passes on those of a driver, the driver's.
 *
 * @param death of a child that we have not killed ourselves
 */
export function outOfMemory({ exit, phase, lastLines, kernelKill }: Death): OutOfMemory | undefined {
  if (exit.spawnError) return couldNotFork(exit.spawnError);
  if (wasKilled(exit)) return byKernel(kernelKill());
  const signal = signalOf(exit);
  // It ended in order, or because it was told to.
  if (exit.code === 0 || (signal !== undefined && !OWN_DOING.has(signal))) return undefined;
  return byWords(lastLines, phase === 'loading' ? WHILE_LOADING : LAST_WORDS);
}

/** Continues a sentence that begins with the child. */
export function describeOutOfMemory({ kind, words }: OutOfMemory): string {
  const whose = kind === 'device' ? "the device's memory" : "the machine's memory";
  return `ran out of ${whose}: ${words}`;
}

/** Whether SIGKILL has ended it. */
export function wasKilled(exit: ChildExit): boolean {
  return signalOf(exit) === 'SIGKILL';
}

/** The signal that has ended it. A shell around it reports that as 128 and the number of the signal. */
export function signalOf({ code, signal }: ChildExit): string | undefined {
  if (signal !== null) return signal;
  const number = (code ?? 0) - 128;
  return Object.entries(constants.signals).find(([, each]) => each === number)?.[0];
}

function byKernel(words: string | undefined): OutOfMemory | undefined {
  return words === undefined ? undefined : { kind: 'host', words };
}

function couldNotFork(error: NodeJS.ErrnoException): OutOfMemory | undefined {
  return error.code === 'ENOMEM' ? { kind: 'host', words: error.message } : undefined;
}

/** The first line says most: those after it only say what follows from it. */
function byWords(lastLines: readonly string[], words: Words): OutOfMemory | undefined {
  if (lastLines.some((line) => OTHER_REASON.test(line))) return undefined;
  const secondTry = lastLines.findLastIndex((line) => SECOND_TRY.test(line));
  for (const line of lastLines.slice(secondTry + 1)) {
    if (NO_ERROR.test(line) || MADE_DO.some((each) => each.test(line))) continue;
    const kind = words.find(([, each]) => each.test(line))?.[0];
    if (kind !== undefined) return { kind, words: tellingLine([line]) ?? line };
  }
  return undefined;
}
