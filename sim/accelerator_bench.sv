// SPDX-License-Identifier: Apache-2.0
// The accelerator with its external memory, so that a run takes no Python from start to interrupt.
//
//   +memory=FILE   the memory's bytes, at address host_base
//   +words=N       of it, of SIZE bytes
//   +dump=PREFIX   write what the units compute, a line of hexadecimal digits an event, to
//                  PREFIX<unit>.<host_run>
//
// The testbench says how the memory answers:
//
//   host_latency   longest time from a request to its first word: 1 to so many cycles, at random
//   host_gaps      of 256 cycles, so many at random in which no request or no word is taken
//   host_seed      of the random numbers; 0: the latency is always host_latency
//   host_shy       whether it is ready for a request only once there is one
//
// and how it asks for registers itself: cycles that the address, the value of a write and the readiness for the
// answer come late (host_*_late), and whether a write comes twice, its value one more, before its answer is taken
// (host_again).
//
// Reading beyond the memory is answered with DECERR. A broken rule, of AXI or that nothing is computed once a
// run is done, sets a bit of `faults`.
// `SIZE and `AXIL_BITS, the width of an AXI4-Lite address, are defined by who compiles this.
module accelerator_bench;
  localparam SIZE = `SIZE;
  localparam AXIL_BITS = `AXIL_BITS;
  localparam PENDING = 256;
  localparam WORD_BITS = $clog2(SIZE);
  localparam DECERR = 2'd3;

  // The clock is made here: driven by the testbench, it would cost a third of the time.
  logic clk = 0, rst = 1;
  always #1 clk = ~clk;

  logic [63:0] m_axi_araddr;
  logic [7:0] m_axi_arlen;
  logic [2:0] m_axi_arsize, m_axi_arprot;
  logic [1:0] m_axi_arburst;
  logic [3:0] m_axi_arcache;
  logic m_axi_arvalid, m_axi_rready;
  logic m_axi_arready = 0, m_axi_rvalid = 0, m_axi_rlast = 0;
  logic [8*SIZE-1:0] m_axi_rdata = 0;
  logic [1:0] m_axi_rresp = 0;

  logic [AXIL_BITS-1:0] s_axil_awaddr = 0, s_axil_araddr = 0;
  logic [31:0] s_axil_wdata = 0, s_axil_rdata;
  logic [3:0] s_axil_wstrb = 0;
  logic [1:0] s_axil_bresp, s_axil_rresp;
  logic s_axil_awvalid = 0, s_axil_wvalid = 0, s_axil_bready = 0, s_axil_arvalid = 0, s_axil_rready = 0;
  logic s_axil_awready, s_axil_wready, s_axil_bvalid, s_axil_arready, s_axil_rvalid;
  logic irq;

  qvit_accelerator dut (.*);

  // ---------------------------------------------------------------------------------------- host

  // host_run is the number of the run, -1 between runs, where what was dumped is whole.
  // The testbench sets host_ask with the rest of a request, waits for host_answered, and takes host_ask back.
  // What it drives goes through registers: were it wired, Verilator would compute everything that depends
  // on it, which is everything, at every step.
  logic host_rst = 1, host_ask = 0, host_write = 0;
  logic [AXIL_BITS-1:0] host_address = 0;
  logic [31:0] host_value = 0;
  logic [3:0] host_strobe = 0;
  int host_run = 0, host_latency = 16, host_gaps = 0, host_seed = 0;
  logic host_answered = 0, host_irq = 0;
  logic [31:0] host_data = 0;
  logic [1:0] host_response = 0;
  logic [63:0] host_base = 64'h0000_0012_3450_0000;
  int host_address_late = 0, host_value_late = 0, host_ready_late = 0, asked = 0;
  logic host_again = 0, host_shy = 0;
  logic [1:0] address_left = 0, value_left = 0, answers_left = 0;

  always @(posedge clk) begin
    rst <= host_rst;
    host_irq <= irq;
    asked <= host_ask ? asked + 1 : 0;
    // What was taken goes away, so that who wants it must have kept it.
    if (s_axil_awvalid && s_axil_awready) begin
      address_left = address_left - 1;
      s_axil_awvalid <= address_left != 0;
      s_axil_awaddr <= address_left != 0 ? host_address : ~host_address;
    end
    if (s_axil_wvalid && s_axil_wready) begin
      value_left = value_left - 1;
      s_axil_wvalid <= value_left != 0;
      s_axil_wdata <= value_left != 0 ? host_value + 1 : ~host_value;
      s_axil_wstrb <= value_left != 0 ? host_strobe : ~host_strobe;
    end
    if (s_axil_arvalid && s_axil_arready) begin
      address_left = address_left - 1;
      s_axil_arvalid <= address_left != 0;
      s_axil_araddr <= address_left != 0 ? host_address : ~host_address;
    end
    if (host_ask) begin
      if (asked == 0) {address_left, value_left, answers_left} = {3{2'd1 + {1'b0, host_again}}};
      if (asked == host_address_late) begin
        {s_axil_awaddr, s_axil_araddr} <= {2{host_address}};
        {s_axil_awvalid, s_axil_arvalid} <= {host_write, !host_write};
      end
      if (asked == host_value_late) begin
        {s_axil_wdata, s_axil_wstrb, s_axil_wvalid} <= {host_value, host_strobe, host_write};
      end
      if (asked == host_ready_late) {s_axil_bready, s_axil_rready} <= {host_write, !host_write};
    end
    if (s_axil_bvalid && s_axil_bready || s_axil_rvalid && s_axil_rready) begin
      answers_left = answers_left - 1;
      if (answers_left == 0) begin
        host_answered <= 1;
        {s_axil_bready, s_axil_rready} <= 0;
      end
      host_data <= s_axil_rdata;
      host_response <= s_axil_rvalid ? s_axil_rresp : s_axil_bresp;
    end
    if (!host_ask) host_answered <= 0;
  end

  // ------------------------------------------------------------------------------------- memory

  logic [8*SIZE-1:0] memory[];
  int words = 0, seed = 0;

  initial begin : load
    string path;
    int file, told;
    logic [8*SIZE-1:0] bytes, word;
    if (!$value$plusargs("memory=%s", path) || !$value$plusargs("words=%d", words))
      $fatal(1, "a run needs +memory=FILE and +words=N");
    file = $fopen(path, "rb");
    if (file == 0) $fatal(1, "the memory's file cannot be read");
    memory = new[words];
    for (int i = 0; i < words; i++) begin
      told = $fread(bytes, file);
      for (int j = 0; j < SIZE; j++) word[8*j+:8] = bytes[8*(SIZE-1-j)+:8];
      memory[i] = word;
    end
    $fclose(file);
  end

  // xorshift: the same numbers in every simulator.
  logic [31:0] random = 32'h2545F491;
  function automatic logic [31:0] shuffled(input logic [31:0] x);
    x = x ^ (x << 13);
    x = x ^ (x >> 17);
    return x ^ (x << 5);
  endfunction

  // Requests that were taken, in a ring: first word, words left, cycle from which they are answered.
  logic [63:0] place[PENDING];
  logic [8:0] left[PENDING];
  int due[PENDING];
  logic [7:0] head = 0, tail = 0;
  int cycle = 0;

  always @(posedge clk) begin
    cycle <= cycle + 1;
    random <= shuffled(random ^ (host_seed != seed ? host_seed : 0));
    seed <= host_seed;
    if (m_axi_arvalid && m_axi_arready) begin
      place[tail] = (m_axi_araddr - host_base) >> WORD_BITS;
      left[tail] = {1'b0, m_axi_arlen} + 1;
      due[tail] = cycle + (host_seed == 0 ? host_latency : 1 + int'(random[30:8]) % host_latency);
      tail = tail + 1;
    end
    m_axi_arready <= tail + 8'd1 != head && random[31:24] >= host_gaps[7:0]
        && (!host_shy || m_axi_arvalid && !m_axi_arready);
    if (m_axi_rready) m_axi_rvalid <= 0;
    if ((!m_axi_rvalid || m_axi_rready) && head != tail && due[head] <= cycle
        && random[7:0] >= host_gaps[7:0]) begin
      m_axi_rvalid <= 1;
      m_axi_rlast <= left[head] == 1;
      m_axi_rdata <= place[head] < 64'(words) ? memory[place[head][31:0]] : '0;
      m_axi_rresp <= place[head] < 64'(words) ? 0 : DECERR;
      place[head] = place[head] + 1;
      left[head] = left[head] - 1;
      if (left[head] == 0) head = head + 1;
    end
    if (rst) begin
      head = 0;
      tail = 0;
      m_axi_arready <= 0;
      m_axi_rvalid <= 0;
    end
  end

  // --------------------------------------------------------------------------------------- rules

  logic [8:0] faults = 0;
  logic held = 0, rst_before = 0;
  logic answer_held = 0, read_held = 0;
  logic [1:0] answer;
  logic [33:0] read;
  logic [71:0] request;
  logic [11:0] last_byte;
  assign last_byte = m_axi_araddr[11:0] + ({4'd0, m_axi_arlen} << WORD_BITS);

  always @(posedge clk) begin
    request <= {m_axi_araddr, m_axi_arlen};
    held <= !rst && m_axi_arvalid && !m_axi_arready;
    rst_before <= rst;
    answer <= s_axil_bresp;
    answer_held <= !rst && s_axil_bvalid && !s_axil_bready;
    read <= {s_axil_rdata, s_axil_rresp};
    read_held <= !rst && s_axil_rvalid && !s_axil_rready;
    if (rst) begin
      if (rst_before && (m_axi_arvalid || s_axil_bvalid || s_axil_rvalid || irq)) faults[0] <= 1;
    end else begin
      if (held && !(m_axi_arvalid && request == {m_axi_araddr, m_axi_arlen})) faults[1] <= 1;
      if (m_axi_arvalid) begin
        // Crosses 4 KiB, or is longer than the hardware's own limit.
        if (last_byte < m_axi_araddr[11:0] || m_axi_arlen > 15) faults[2] <= 1;
        if ((m_axi_araddr & 64'(SIZE - 1)) != 0) faults[3] <= 1;
        if (m_axi_arsize != 3'(WORD_BITS) || m_axi_arburst != 1) faults[4] <= 1;
        if (m_axi_arcache != 3 || m_axi_arprot != 0) faults[4] <= 1;
      end
      if (answer_held && !(s_axil_bvalid && answer == s_axil_bresp)) faults[6] <= 1;
      if (read_held && !(s_axil_rvalid && read == {s_axil_rdata, s_axil_rresp})) faults[7] <= 1;
      if (irq && (dut.core.probe_sums || dut.core.probe_drain || dut.core.probe_layernorm
                  || dut.core.probe_softmax)) faults[8] <= 1;
      // Unknown, in a simulator that knows of it.
      if ((^{m_axi_arvalid, m_axi_rready, s_axil_awready, s_axil_wready, s_axil_bvalid, s_axil_arready,
             s_axil_rvalid, irq}) === 1'bx) faults[5] <= 1;
    end
  end

  // ----------------------------------------------------------------------------------- the dump

  string prefix;
  logic dumping = 0;
  int run = -1, summed = 0, drained = 0, normed = 0, attended = 0;

  function automatic int opened(input string unit);
    return $fopen($sformatf("%s%s.%0d", prefix, unit, run), "w");
  endfunction

  initial if ($value$plusargs("dump=%s", prefix)) dumping = 1;

  always @(posedge clk)
    if (dumping) begin
      if (run != host_run) begin
        if (run >= 0) begin
          $fclose(summed);
          $fclose(drained);
          $fclose(normed);
          $fclose(attended);
        end
        run = host_run;
        if (run >= 0) begin
          summed = opened("sums");
          drained = opened("drain");
          normed = opened("layernorm");
          attended = opened("softmax");
        end
      end
      if (run >= 0) begin
        if (dut.core.probe_sums) $fwrite(summed, "%h\n", dut.core.probe_sums_word);
        if (dut.core.probe_drain) $fwrite(drained, "%h\n", dut.core.probe_drain_word);
        if (dut.core.probe_layernorm) $fwrite(normed, "%h\n", dut.core.probe_layernorm_word);
        if (dut.core.probe_softmax) $fwrite(attended, "%h\n", dut.core.probe_softmax_word);
      end
    end
endmodule
