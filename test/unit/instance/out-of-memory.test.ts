import { describe, expect, it, test } from 'vitest';
import type { ChildExit } from '../../../src/instance/child-process.js';
import { describeOutOfMemory, outOfMemory, type Death } from '../../../src/instance/out-of-memory.js';

const exited: ChildExit = { code: 1, signal: null };
const aborted: ChildExit = { code: null, signal: 'SIGABRT' };
const killed: ChildExit = { code: null, signal: 'SIGKILL' };

/** A load that failed with an exit code, unless told otherwise; the kernel has nothing to say. */
function judge(death: Partial<Death>) {
  return outOfMemory({
    exit: exited,
    phase: 'loading',
    lastLines: [],
    kernelKill: () => undefined,
    ...death,
  });
}

describe('a load that failed for want of memory', () => {
  /** As they are written, with what comes before and after; the line that tells is the marked one. */
  const shapes: readonly (readonly [what: string, kind: 'device' | 'host', lines: readonly string[]])[] = [
    [
      'the weights do not fit a CUDA device',
      'device',
      [
        '0.01.204.311 I load_tensors: loading model tensors, this can take a while... (mmap = true)',
        '>0.01.310.902 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 22931.50 MiB on device 0: cudaMalloc failed: out of memory',
        '0.01.310.915 E alloc_tensor_range: failed to allocate CUDA0 buffer of size 24045420544',
        '0.01.340.101 E llama_model_load: error loading model: unable to allocate CUDA0 buffer',
        '0.01.340.114 E llama_model_load_from_file_impl: failed to load model',
        '0.01.352.440 E srv  llama_server: exiting due to model loading error',
      ],
    ],
    [
      'the compute buffers do not fit a ROCm device, not even without pipeline parallelism',
      'device',
      [
        'ggml_backend_cuda_buffer_type_alloc_buffer: allocating 826.00 MiB on device 1: cudaMalloc failed: out of memory',
        'ggml_gallocr_reserve_n_impl: failed to allocate ROCm1 buffer of size 866125824',
        '0.02.001.001 W llama_context: compute buffer allocation failed, retrying without pipeline parallelism',
        '>ggml_backend_cuda_buffer_type_alloc_buffer: allocating 413.00 MiB on device 0: cudaMalloc failed: out of memory',
        'ggml_gallocr_reserve_n_impl: failed to allocate ROCm0 buffer of size 433062912',
        'llama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers',
      ],
    ],
    [
      'the weights do not fit a Vulkan device',
      'device',
      [
        '>ggml_vulkan: Device memory allocation of size 369827840 failed.',
        'ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory',
        '0.01.340.101 E alloc_tensor_range: failed to allocate Vulkan0 buffer of size 369827840',
        '0.01.340.105 E llama_model_load: error loading model: unable to allocate Vulkan0 buffer',
      ],
    ],
    [
      'a buffer is larger than Vulkan takes',
      'device',
      ['>ggml_vulkan: Requested buffer size exceeds device buffer size limit: ErrorOutOfDeviceMemory'],
    ],
    [
      'the KV cache does not fit a Metal device',
      'device',
      [
        '>0.00.441.101 E ggml_metal_buffer_init: error: failed to allocate buffer, size = 65536.00 MiB',
        '0.00.441.104 E ggml_backend_metal_buffer_type_alloc_buffer: failed to allocate Metal buffer of 68719476736 bytes (out of memory)',
        '0.00.441.110 E alloc_tensor_range: failed to allocate MTL0_Private buffer of size 68719476736',
        '0.00.450.001 E llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache',
      ],
    ],
    [
      'a SYCL device has not enough',
      'device',
      [
        ">0.00.900.000 E ggml_backend_sycl_buffer_type_alloc_buffer: can't allocate 3503030272 Bytes of memory on device",
        '0.00.900.010 E alloc_tensor_range: failed to allocate SYCL0 buffer of size 3503030272',
      ],
    ],
    [
      'an OpenCL device has not enough',
      'device',
      [
        '>0.00.600.000 E ggml_backend_opencl_buffer_type_alloc_buffer: failed to allocate 2048.00 MiB (err=-61). Consider reducing -ngl, lowering -c / -ub, or using quantized KV cache.',
      ],
    ],
    [
      'all that is left names the buffer of a device',
      'device',
      ['>0.01.340.101 E llama_model_load: error loading model: unable to allocate CUDA1 buffer'],
    ],
    [
      'the machine has not enough for the compute buffers',
      'host',
      [
        '0.00.015.853 W llama_context: n_ctx_seq (1000192) > n_ctx_train (4096) -- possible training context overflow',
        '>0.00.284.374 E ggml_aligned_malloc: insufficient memory (attempted to allocate 978.64 MB)',
        '0.00.284.387 E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 1026175008',
        '0.00.284.388 E ggml_gallocr_reserve_n_impl: failed to allocate CPU buffer of size 1026175008',
        '0.00.284.388 E graph_reserve: failed to allocate compute buffers',
        '0.00.328.358 I srv    operator(): operator(): cleaning up before exit...',
        '0.00.329.318 E srv  llama_server: exiting due to model loading error',
      ],
    ],
    [
      'the model cannot be mapped',
      'host',
      [
        '>0.00.015.971 E llama_model_load: error loading model: mmap failed: Cannot allocate memory',
        '0.00.015.985 E llama_model_load_from_file_impl: failed to load model',
      ],
    ],
    [
      'all that is left names a buffer of the machine, mapped for a device or not',
      'host',
      [
        '>0.01.340.101 E alloc_tensor_range: failed to allocate CUDA_Host buffer of size 866125824',
        '0.01.340.105 E llama_model_load: error loading model: unable to allocate CUDA_Host buffer',
      ],
    ],
    [
      'repacked weights do not fit',
      'host',
      ['>0.1.2.3 E llama_model_load: error loading model: unable to allocate CPU_REPACK buffer'],
    ],
    [
      'nothing but the KV cache is named',
      'host',
      [
        '>0.1.2.3 E llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache',
      ],
    ],
    [
      'the vocabulary does not fit',
      'host',
      ['>0.1.2.3 E llama_model_load: error loading model: error loading model vocabulary: std::bad_alloc'],
    ],
    [
      'its libraries cannot be loaded',
      'host',
      [
        '>llama-server: error while loading shared libraries: libggml-cuda.so: failed to map segment from shared object: Cannot allocate memory',
      ],
    ],
  ];

  it.each(shapes)('because %s (%s)', (_, kind, marked) => {
    const lastLines = marked.map((line) => line.replace(/^>/, ''));
    const telling = marked.find((line) => line.startsWith('>'))?.slice(1) ?? '';
    const verdict = judge({ lastLines });
    expect(verdict?.kind).toBe(kind);
    expect(telling.endsWith(verdict?.words ?? 'nothing')).toBe(true);
    // The time and the level are the log's, and no part of what it says.
    expect(verdict?.words).not.toMatch(/^[\d.]+ [A-Z] /);
  });
});

describe('a child that ran out of memory while it served', () => {
  it.each([
    ['device', 'CUDA error: out of memory'],
    ['device', '12.44.101.002 E ROCm error: out of memory'],
    ['device', 'CUDA error: CUBLAS_STATUS_ALLOC_FAILED'],
    ['device', 'CUDA error: the resource allocation failed'],
    ['device', '  what():  vk::Device::allocateMemory: ErrorOutOfDeviceMemory'],
    ['device', "terminate called after throwing an instance of 'vk::OutOfDeviceMemoryError'"],
    ['device', 'error: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)'],
    ['device', 'Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)'],
    [
      'host',
      'Native API failed. Native API returns: -6 (PI_ERROR_OUT_OF_HOST_MEMORY) -6 (PI_ERROR_OUT_OF_HOST_MEMORY)',
    ],
    [
      'device',
      '3.00.000.001 E ggml_opencl: clEnqueueNDRangeKernel(queue, kernel) error -4 at ggml-opencl.cpp:6121',
    ],
    ['host', "terminate called after throwing an instance of 'std::bad_alloc'"],
    ['host', '  what():  std::bad_alloc'],
    ['host', 'libc++abi: terminating due to uncaught exception of type std::bad_alloc: std::bad_alloc'],
    ['host', '3.00.000.001 E ggml_calloc: failed to allocate 512.00 MB'],
    ['host', 'ggml/src/ggml.c:1644: GGML_ASSERT(ctx->mem_buffer != NULL) failed'],
  ] as const)('(%s) says: %s', (kind, line) => {
    const lastLines = [
      '12.44.100.000 I slot update_slots: id  0 | task 12 | processing',
      line,
      '#0  0x00007f in wait4 ()',
    ];
    for (const phase of ['running', 'loading'] as const) {
      expect(judge({ phase, exit: aborted, lastLines })?.kind).toBe(kind);
    }
  });

  it.each<ChildExit>([
    { code: null, signal: 'SIGSEGV' },
    { code: null, signal: 'SIGBUS' },
    { code: 134, signal: null },
    { code: 139, signal: null },
    { code: 1, signal: null },
    { code: 255, signal: null },
  ])('is believed when it ended by its own doing: %j', (exit) => {
    const lastLines = ['CUDA error: out of memory'];
    expect(judge({ phase: 'running', exit, lastLines })).toEqual({ kind: 'device', words: lastLines[0] });
  });

  it('is told by the first of its lines, in one sentence that names whose memory it was', () => {
    const lastLines = [
      '0.44.1.2 E CUDA error: out of memory',
      '0.44.1.2 E   current device: 0, in function alloc at ggml-cuda.cu:494',
    ];
    const verdict = judge({ phase: 'running', exit: aborted, lastLines });
    if (!verdict) throw new Error('it was not recognised');
    expect(describeOutOfMemory(verdict)).toBe("ran out of the device's memory: CUDA error: out of memory");
    expect(describeOutOfMemory({ kind: 'host', words: 'w' })).toBe("ran out of the machine's memory: w");
  });
});

describe('no want of memory is', () => {
  test.each([
    [
      'memory that could not be locked',
      'warning: failed to mlock 1048576-byte buffer (after previously locking 0 bytes): Cannot allocate memory',
    ],
    [
      'memory that is not pinned',
      'ggml_vulkan: Failed to allocate pinned memory (vk::Device::allocateMemory: ErrorOutOfDeviceMemory)',
    ],
    [
      'a prompt cache that was made smaller',
      '1.00.0.0 E srv  save_slot: failed to allocate memory for prompt cache state: std::bad_alloc',
    ],
    ['a warning', '0.00.100.000 W ggml_backend_sycl: failed to allocate CUDA0 buffer of size 12'],
    [
      'a device that is lost',
      'ggml_backend_cuda_buffer_type_alloc_buffer: allocating 12.00 MiB on device 0: cudaMalloc failed: initialization error',
    ],
    [
      'a Metal library that cannot be compiled',
      '0.0.1.0 E ggml_metal_init: error: failed to allocate context',
    ],
    [
      'a damaged file',
      "0.0.1.0 E gguf_init_from_reader: encountered bad_alloc error while reading value for key 'tokenizer.ggml.tokens'",
    ],
    ['too many libraries', 'libfoo.so: cannot allocate memory in static TLS block'],
    ['too many threads', "terminate called after throwing an instance of 'std::system_error'"],
    [
      'an unknown architecture',
      "0.0.1.0 E llama_model_load: error loading model: unknown model architecture: 'llamb'",
    ],
    ['another error of the device', 'CUDA error: an illegal memory access was encountered'],
  ])('%s', (_, line) => {
    expect(judge({ lastLines: [line] })).toBeUndefined();
  });

  test('what follows from a device that refuses for another reason', () => {
    const lastLines = [
      'ggml_backend_cuda_buffer_type_alloc_buffer: allocating 12.00 MiB on device 0: cudaMalloc failed: unspecified launch failure',
      'alloc_tensor_range: failed to allocate CUDA0 buffer of size 12582912',
    ];
    expect(judge({ lastLines })).toBeUndefined();
  });

  test('an allocation that failed a request, after which the child went on and ended otherwise', () => {
    const lastLines = [
      '9.00.000.000 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 826.00 MiB on device 0: cudaMalloc failed: out of memory',
      '9.00.000.001 E srv    send_error: task id = 7, error: Compute error.',
    ];
    expect(judge({ phase: 'running', exit: { code: null, signal: 'SIGSEGV' }, lastLines })).toBeUndefined();
  });

  test('a first try after which the second one ended otherwise', () => {
    const lastLines = [
      'ggml_gallocr_reserve_n_impl: failed to allocate CUDA1 buffer of size 866125824',
      '0.02.001.001 W llama_context: compute buffer allocation failed, retrying without pipeline parallelism',
      '0.02.101.001 E llama_init_from_model: failed to initialize the context: unsupported',
    ];
    expect(judge({ lastLines })).toBeUndefined();
  });

  test('an end in order', () => {
    expect(
      judge({ exit: { code: 0, signal: null }, lastLines: ['CUDA error: out of memory'] }),
    ).toBeUndefined();
  });

  // Metal says so and goes on; what was said of it may be among the last lines for long.
  test.each<ChildExit>([
    { code: null, signal: 'SIGKILL' },
    { code: 137, signal: null },
    { code: null, signal: 'SIGTERM' },
    { code: 143, signal: null },
    { code: null, signal: 'SIGINT' },
    { code: null, signal: 'SIGHUP' },
    { code: null, signal: 'SIGILL' },
  ])('what it has said before somebody else ended it: %j', (exit) => {
    const lastLines = ['error: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)'];
    expect(judge({ phase: 'running', exit, lastLines })).toBeUndefined();
    expect(judge({ phase: 'loading', exit, lastLines })).toBeUndefined();
  });

  test('a plain kill -9', () => {
    expect(judge({ exit: killed, phase: 'running', lastLines: ['all is well'] })).toBeUndefined();
    expect(judge({ exit: { code: 137, signal: null } })).toBeUndefined();
  });

  test('a program that is not there', () => {
    const spawnError = Object.assign(new Error('spawn ENOENT'), { code: 'ENOENT' });
    expect(judge({ exit: { code: null, signal: null, spawnError } })).toBeUndefined();
  });
});

describe('the kernel', () => {
  it.each([
    ['by SIGKILL', killed],
    ['as a shell around it reports that', { code: 137, signal: null }],
  ])('is believed when it says that it has killed the child, which ended %s', (_, exit) => {
    const kernelKill = () => 'the kernel says so';
    const verdict = { kind: 'host', words: 'the kernel says so' };
    expect(judge({ exit, kernelKill })).toEqual(verdict);
    expect(judge({ exit, kernelKill, phase: 'running' })).toEqual(verdict);
  });

  it.each([[aborted], [exited], [{ code: 0, signal: null }]])(
    'is not asked about another end: %j',
    (exit) => {
      const kernelKill = () => {
        throw new Error('asked');
      };
      expect(judge({ exit, kernelKill })).toBeUndefined();
    },
  );

  it('tells by an error number that there was no memory for a process', () => {
    const spawnError = Object.assign(new Error('spawn ENOMEM'), { code: 'ENOMEM' });
    const exit: ChildExit = { code: null, signal: null, spawnError };
    expect(judge({ exit })).toEqual({ kind: 'host', words: 'spawn ENOMEM' });
  });
});
